"""The native driver's code, as LLVM IR. ``driver.py`` describes the tables that it walks."""

from __future__ import annotations

from lazyc.runtime.block_ir import BLOCK_IR

DRIVER_IR = (
    BLOCK_IR
    + r"""
%Kernel = type { ptr, ptr, ptr, i64, ptr, ptr }   ; fn, buffers, sizes, items, error, openmp
%Batch = type { ptr, ptr, ptr }                   ; record, env, openmp

define internal i64 @word(ptr %rec, i64 %i) alwaysinline {
  %p = getelementptr i64, ptr %rec, i64 %i
  %v = load i64, ptr %p
  ret i64 %v
}
define internal i32 @word32(ptr %rec, i64 %i) alwaysinline {
  %v = call i64 @word(ptr %rec, i64 %i)
  %t = trunc i64 %v to i32
  ret i32 %t
}
define internal ptr @wordptr(ptr %rec, i64 %i) alwaysinline {
  %v = call i64 @word(ptr %rec, i64 %i)
  %p = inttoptr i64 %v to ptr
  ret ptr %p
}
; The address that the (slot, offset) pair at word %i of the record names.
define internal ptr @resolve(ptr %rec, i64 %i, ptr %env) alwaysinline {
  %slot = call i64 @word(ptr %rec, i64 %i)
  %base = call ptr @wordptr(ptr %env, i64 %slot)
  %j = add i64 %i, 1
  %offset = call i64 @word(ptr %rec, i64 %j)
  %p = getelementptr i8, ptr %base, i64 %offset
  ret ptr %p
}
; This thread's share [lo, hi) of %items.
define internal { i64, i64 } @share(ptr %openmp, i64 %items) {
  %f1 = call ptr @wordptr(ptr %openmp, i64 1)
  %f2 = call ptr @wordptr(ptr %openmp, i64 2)
  %t32 = call i32 %f1()
  %k32 = call i32 %f2()
  %t = sext i32 %t32 to i64
  %k = sext i32 %k32 to i64
  %t1 = add i64 %t, 1
  %a = mul i64 %items, %t
  %b = mul i64 %items, %t1
  %lo = udiv i64 %a, %k
  %hi = udiv i64 %b, %k
  %r0 = insertvalue { i64, i64 } undef, i64 %lo, 0
  %r1 = insertvalue { i64, i64 } %r0, i64 %hi, 1
  ret { i64, i64 } %r1
}

define internal void @kernel_task(ptr %task) {
  %local = alloca i64
  store i64 0, ptr %local
  %fn = load ptr, ptr %task
  %p1 = getelementptr %Kernel, ptr %task, i32 0, i32 1
  %buffers = load ptr, ptr %p1
  %p2 = getelementptr %Kernel, ptr %task, i32 0, i32 2
  %sizes = load ptr, ptr %p2
  %p3 = getelementptr %Kernel, ptr %task, i32 0, i32 3
  %items = load i64, ptr %p3
  %p4 = getelementptr %Kernel, ptr %task, i32 0, i32 4
  %error = load ptr, ptr %p4
  %p5 = getelementptr %Kernel, ptr %task, i32 0, i32 5
  %openmp = load ptr, ptr %p5
  %range = call { i64, i64 } @share(ptr %openmp, i64 %items)
  %lo = extractvalue { i64, i64 } %range, 0
  %hi = extractvalue { i64, i64 } %range, 1
  %some = icmp ult i64 %lo, %hi
  br i1 %some, label %work, label %done
work:
  call void %fn(ptr %buffers, ptr %sizes, i64 %lo, i64 %hi, ptr %local)
  %bits = load i64, ptr %local
  %failed = icmp ne i64 %bits, 0
  br i1 %failed, label %report, label %done
report:
  %old = atomicrmw or ptr %error, i64 %bits monotonic
  br label %done
done:
  ret void
}

define internal void @run_kernel(ptr %rec, ptr %env, ptr %error, ptr %task) {
entry:
  %fn = call ptr @wordptr(ptr %rec, i64 2)
  %items = call i64 @word(ptr %rec, i64 3)
  %grain = call i64 @word(ptr %rec, i64 4)
  %count = call i64 @word(ptr %rec, i64 5)
  %buffers = call ptr @wordptr(ptr %env, i64 2)
  br label %next
next:
  %i = phi i64 [ 0, %entry ], [ %i1, %fill ]
  %more = icmp ult i64 %i, %count
  br i1 %more, label %fill, label %ready
fill:
  %i2 = shl i64 %i, 1
  %at = add i64 %i2, 6
  %p = call ptr @resolve(ptr %rec, i64 %at, ptr %env)
  %to = getelementptr ptr, ptr %buffers, i64 %i
  store ptr %p, ptr %to
  %i1 = add i64 %i, 1
  br label %next
ready:
  %c2 = shl i64 %count, 1
  %c6 = add i64 %c2, 6
  %sizes = getelementptr i64, ptr %rec, i64 %c6
  %threads = call i64 @word(ptr %env, i64 0)
  %parts = udiv i64 %items, %grain
  %fewer = icmp ult i64 %parts, %threads
  %team = select i1 %fewer, i64 %parts, i64 %threads
  %many = icmp ugt i64 %team, 1
  br i1 %many, label %parallel, label %serial
serial:
  call void %fn(ptr %buffers, ptr %sizes, i64 0, i64 %items, ptr %error)
  ret void
parallel:
  %openmp = call ptr @wordptr(ptr %env, i64 1)
  store ptr %fn, ptr %task
  %p1 = getelementptr %Kernel, ptr %task, i32 0, i32 1
  store ptr %buffers, ptr %p1
  %p2 = getelementptr %Kernel, ptr %task, i32 0, i32 2
  store ptr %sizes, ptr %p2
  %p3 = getelementptr %Kernel, ptr %task, i32 0, i32 3
  store i64 %items, ptr %p3
  %p4 = getelementptr %Kernel, ptr %task, i32 0, i32 4
  store ptr %error, ptr %p4
  %p5 = getelementptr %Kernel, ptr %task, i32 0, i32 5
  store ptr %openmp, ptr %p5
  %gomp = call ptr @wordptr(ptr %openmp, i64 0)
  %team32 = trunc i64 %team to i32
  call void %gomp(ptr @kernel_task, ptr %task, i32 %team32, i32 0)
  ret void
}

define internal i64 @step(ptr %dim, i64 %word, i64 %i, i64 %offset) alwaysinline {
  %stride = call i64 @word(ptr %dim, i64 %word)
  %move = mul i64 %stride, %i
  %to = add i64 %offset, %move
  ret i64 %to
}
; The bytes from a, b and c of a batch of products to those of product %product; %dims: its batch dims, last first.
define internal { i64, i64, i64 } @offsets(ptr %dims, i64 %ndims, i64 %product) {
entry:
  br label %locate
locate:
  %d = phi i64 [ %ndims, %entry ], [ %d1, %within ]
  %rest = phi i64 [ %product, %entry ], [ %rest1, %within ]
  %oa = phi i64 [ 0, %entry ], [ %oa1, %within ]
  %ob = phi i64 [ 0, %entry ], [ %ob1, %within ]
  %oc = phi i64 [ 0, %entry ], [ %oc1, %within ]
  %located = icmp eq i64 %d, 0
  br i1 %located, label %done, label %within
within:
  %d1 = sub i64 %d, 1
  %d4 = shl i64 %d1, 2
  %dim = getelementptr i64, ptr %dims, i64 %d4
  %size = call i64 @word(ptr %dim, i64 0)
  %i = urem i64 %rest, %size
  %rest1 = udiv i64 %rest, %size
  %oa1 = call i64 @step(ptr %dim, i64 1, i64 %i, i64 %oa)
  %ob1 = call i64 @step(ptr %dim, i64 2, i64 %i, i64 %ob)
  %oc1 = call i64 @step(ptr %dim, i64 3, i64 %i, i64 %oc)
  br label %locate
done:
  %r0 = insertvalue { i64, i64, i64 } undef, i64 %oa, 0
  %r1 = insertvalue { i64, i64, i64 } %r0, i64 %ob, 1
  %r2 = insertvalue { i64, i64, i64 } %r1, i64 %oc, 2
  ret { i64, i64, i64 } %r2
}
define internal void @gemm_range(ptr %rec, ptr %env, i64 %lo, i64 %hi) {
entry:
  %fn = call ptr @wordptr(ptr %rec, i64 2)
  %ndims = call i64 @word(ptr %rec, i64 5)
  %a = call ptr @resolve(ptr %rec, i64 6, ptr %env)
  %b = call ptr @resolve(ptr %rec, i64 8, ptr %env)
  %c = call ptr @resolve(ptr %rec, i64 10, ptr %env)
  %ta = getelementptr i64, ptr %rec, i64 12
  %tb = getelementptr i64, ptr %rec, i64 13
  %m = getelementptr i64, ptr %rec, i64 14
  %n = getelementptr i64, ptr %rec, i64 15
  %k = getelementptr i64, ptr %rec, i64 16
  %lda = getelementptr i64, ptr %rec, i64 17
  %ldb = getelementptr i64, ptr %rec, i64 18
  %ldc = getelementptr i64, ptr %rec, i64 19
  %alpha = getelementptr i64, ptr %rec, i64 20
  %beta = getelementptr i64, ptr %rec, i64 21
  %dims = getelementptr i64, ptr %rec, i64 22
  br label %loop
loop:
  %product = phi i64 [ %lo, %entry ], [ %following, %one ]
  %more = icmp ult i64 %product, %hi
  br i1 %more, label %one, label %done
one:
  %at = call { i64, i64, i64 } @offsets(ptr %dims, i64 %ndims, i64 %product)
  %oa = extractvalue { i64, i64, i64 } %at, 0
  %ob = extractvalue { i64, i64, i64 } %at, 1
  %oc = extractvalue { i64, i64, i64 } %at, 2
  %pa = getelementptr i8, ptr %a, i64 %oa
  %pb = getelementptr i8, ptr %b, i64 %ob
  %pc = getelementptr i8, ptr %c, i64 %oc
  call void %fn(ptr %ta, ptr %tb, ptr %m, ptr %n, ptr %k, ptr %alpha, ptr %pa, ptr %lda,
                ptr %pb, ptr %ldb, ptr %beta, ptr %pc, ptr %ldc)
  %following = add i64 %product, 1
  br label %loop
done:
  ret void
}
define internal void @gemm_task(ptr %task) {
  %rec = load ptr, ptr %task
  %p1 = getelementptr %Batch, ptr %task, i32 0, i32 1
  %env = load ptr, ptr %p1
  %p2 = getelementptr %Batch, ptr %task, i32 0, i32 2
  %openmp = load ptr, ptr %p2
  %batch = call i64 @word(ptr %rec, i64 3)
  %range = call { i64, i64 } @share(ptr %openmp, i64 %batch)
  %lo = extractvalue { i64, i64 } %range, 0
  %hi = extractvalue { i64, i64 } %range, 1
  call void @gemm_range(ptr %rec, ptr %env, i64 %lo, i64 %hi)
  ret void
}
; The batch is split over threads (each product on one thread) when there are "split" products for
; each thread; else the products run one after the other, each on all threads.
define internal void @run_gemm(ptr %rec, ptr %env, ptr %task) {
  %batch = call i64 @word(ptr %rec, i64 3)
  %split = call i64 @word(ptr %rec, i64 4)
  %threads = call i64 @word(ptr %env, i64 0)
  %least = mul i64 %split, %threads
  %enough = icmp uge i64 %batch, %least
  %many = icmp ugt i64 %threads, 1
  %parallel = and i1 %enough, %many
  br i1 %parallel, label %team, label %serial
serial:
  call void @gemm_range(ptr %rec, ptr %env, i64 0, i64 %batch)
  ret void
team:
  %openmp = call ptr @wordptr(ptr %env, i64 1)
  store ptr %rec, ptr %task
  %p1 = getelementptr %Batch, ptr %task, i32 0, i32 1
  store ptr %env, ptr %p1
  %p2 = getelementptr %Batch, ptr %task, i32 0, i32 2
  store ptr %openmp, ptr %p2
  %gomp = call ptr @wordptr(ptr %openmp, i64 0)
  %team32 = trunc i64 %threads to i32
  call void %gomp(ptr @gemm_task, ptr %task, i32 %team32, i32 0)
  ret void
}

define internal void @run_packed(ptr %rec, ptr %env) {
  %fn = call ptr @wordptr(ptr %rec, i64 2)
  %a = call ptr @resolve(ptr %rec, i64 3, ptr %env)
  %b = call ptr @resolve(ptr %rec, i64 5, ptr %env)
  %c = call ptr @resolve(ptr %rec, i64 7, ptr %env)
  %ta = call i32 @word32(ptr %rec, i64 9)
  %m = call i32 @word32(ptr %rec, i64 10)
  %n = call i32 @word32(ptr %rec, i64 11)
  %k = call i32 @word32(ptr %rec, i64 12)
  %lda = call i32 @word32(ptr %rec, i64 13)
  %ldb = call i32 @word32(ptr %rec, i64 14)
  %ldc = call i32 @word32(ptr %rec, i64 15)
  %p = getelementptr i64, ptr %rec, i64 16
  %beta = load float, ptr %p
  call void %fn(i32 101, i32 %ta, i32 151, i32 %m, i32 %n, i32 %k, ptr %a, i32 %lda, ptr %b,
                i32 %ldb, float %beta, ptr %c, i32 %ldc)
  ret void
}

define internal i1 @guard_holds(ptr %rec) {
entry:
  %count = call i64 @word(ptr %rec, i64 2)
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %i1, %check ]
  %ok = phi i1 [ true, %entry ], [ %ok1, %check ]
  %more = icmp ult i64 %i, %count
  br i1 %more, label %check, label %done
check:
  %i2 = shl i64 %i, 1
  %at = add i64 %i2, 3
  %p = call ptr @wordptr(ptr %rec, i64 %at)
  %at1 = add i64 %at, 1
  %expected = call i64 @word(ptr %rec, i64 %at1)
  %found = load i64, ptr %p, align 1
  %same = icmp eq i64 %found, %expected
  %ok1 = and i1 %ok, %same
  %i1 = add i64 %i, 1
  br label %loop
done:
  ret i1 %ok
}

; cuLaunchKernel takes an array of addresses of the arguments: those of literals are in the record.
define internal i64 @run_launch(ptr %rec, ptr %env) {
entry:
  %fn = call ptr @wordptr(ptr %rec, i64 2)
  %function = call ptr @wordptr(ptr %rec, i64 3)
  %programs = call i32 @word32(ptr %rec, i64 4)
  %threads = call i32 @word32(ptr %rec, i64 5)
  %shared = call i32 @word32(ptr %rec, i64 6)
  %slot = call i64 @word(ptr %rec, i64 7)
  %stream = call ptr @wordptr(ptr %env, i64 %slot)
  %count = call i64 @word(ptr %rec, i64 8)
  %values = call ptr @wordptr(ptr %env, i64 2)
  %params = getelementptr ptr, ptr %values, i64 %count
  br label %next
next:
  %i = phi i64 [ 0, %entry ], [ %i1, %set ]
  %more = icmp ult i64 %i, %count
  br i1 %more, label %fill, label %ready
fill:
  %i2 = shl i64 %i, 1
  %at = add i64 %i2, 9
  %from = call i64 @word(ptr %rec, i64 %at)
  %literal = icmp slt i64 %from, 0
  %value = getelementptr ptr, ptr %values, i64 %i
  br i1 %literal, label %here, label %address
here:
  %at1 = add i64 %at, 1
  %inside = getelementptr i64, ptr %rec, i64 %at1
  br label %set
address:
  %p = call ptr @resolve(ptr %rec, i64 %at, ptr %env)
  store ptr %p, ptr %value
  br label %set
set:
  %param = phi ptr [ %inside, %here ], [ %value, %address ]
  %to = getelementptr ptr, ptr %params, i64 %i
  store ptr %param, ptr %to
  %i1 = add i64 %i, 1
  br label %next
ready:
  %status = call i32 %fn(ptr %function, i32 %programs, i32 1, i32 1, i32 %threads, i32 1, i32 1,
                         i32 %shared, ptr %stream, ptr %params, ptr null)
  %wide = zext i32 %status to i64
  ret i64 %wide
}

define i64 @lazyc_run(ptr %table, ptr %env) {
entry:
  %error = alloca i64
  %task = alloca [8 x ptr]
  store i64 0, ptr %error
  br label %loop
loop:
  %rec = phi ptr [ %table, %entry ], [ %after, %next ]
  %op = call i64 @word(ptr %rec, i64 0)
  switch i64 %op, label %end [ i64 1, label %kernel
                               i64 2, label %gemm
                               i64 3, label %packed
                               i64 4, label %guard
                               i64 5, label %blocks
                               i64 6, label %launch ]
kernel:
  call void @run_kernel(ptr %rec, ptr %env, ptr %error, ptr %task)
  br label %next
gemm:
  call void @run_gemm(ptr %rec, ptr %env, ptr %task)
  br label %next
packed:
  call void @run_packed(ptr %rec, ptr %env)
  br label %next
blocks:
  call void @run_blocks(ptr %rec, ptr %env, ptr %error, ptr %task)
  br label %next
guard:
  %holds = call i1 @guard_holds(ptr %rec)
  br i1 %holds, label %next, label %stale
stale:
  ret i64 4611686018427387904
launch:
  %status = call i64 @run_launch(ptr %rec, ptr %env)
  %launched = icmp eq i64 %status, 0
  br i1 %launched, label %next, label %refused
refused:
  %why = or i64 %status, 2305843009213693952
  ret i64 %why
next:
  %length = call i64 @word(ptr %rec, i64 1)
  %after = getelementptr i64, ptr %rec, i64 %length
  br label %loop
end:
  %bits = load i64, ptr %error
  ret i64 %bits
}
"""
)
