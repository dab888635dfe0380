"""The native driver's code for steps that run by blocks of rows, as LLVM IR; a part of ``driver_ir``."""

from __future__ import annotations

BLOCK_IR = r"""
%Blocks = type { ptr, ptr, ptr, ptr, ptr, i64 }   ; record, env, openmp, memory, error, wave

; The (slot, offset) pair at word %i of the record; slot -1 is %own.
define internal ptr @resolve_own(ptr %rec, i64 %i, ptr %env, ptr %own) alwaysinline {
  %slot = call i64 @word(ptr %rec, i64 %i)
  %is_own = icmp slt i64 %slot, 0
  %known = select i1 %is_own, i64 0, i64 %slot
  %there = call ptr @wordptr(ptr %env, i64 %known)
  %base = select i1 %is_own, ptr %own, ptr %there
  %j = add i64 %i, 1
  %offset = call i64 @word(ptr %rec, i64 %j)
  %p = getelementptr i8, ptr %base, i64 %offset
  ret ptr %p
}
; Kernel %fn on rows %row0 and the %n - 1 that follow, counted over all matrices; the words of its record
; from %head on are the items of a row and what follows.
define internal void @block_kernel(ptr %rec, i64 %head, ptr %fn, ptr %env, ptr %own, i64 %row0, i64 %n,
                                   ptr %error) {
entry:
  %per_row = call i64 @word(ptr %rec, i64 %head)
  %head1 = add i64 %head, 1
  %count = call i64 @word(ptr %rec, i64 %head1)
  %head2 = add i64 %head, 2
  br label %next
next:
  %i = phi i64 [ 0, %entry ], [ %i1, %fill ]
  %i3 = mul i64 %i, 3
  %at = add i64 %i3, %head2
  %more = icmp ult i64 %i, %count
  br i1 %more, label %fill, label %ready
fill:
  %p = call ptr @resolve_own(ptr %rec, i64 %at, ptr %env, ptr %own)
  %at2 = add i64 %at, 2
  %row = call i64 @word(ptr %rec, i64 %at2)
  %ahead = mul i64 %row0, %row
  %back = sub i64 0, %ahead
  %q = getelementptr i8, ptr %p, i64 %back
  %to = getelementptr ptr, ptr %own, i64 %i
  store ptr %q, ptr %to
  %i1 = add i64 %i, 1
  br label %next
ready:
  %sizes = getelementptr i64, ptr %rec, i64 %at
  %lo = mul i64 %row0, %per_row
  %work = mul i64 %n, %per_row
  %hi = add i64 %lo, %work
  call void %fn(ptr %own, ptr %sizes, i64 %lo, i64 %hi, ptr %error)
  ret void
}
define internal ptr @block_operand(ptr %rec, i64 %i, ptr %env, ptr %own, i64 %first) alwaysinline {
  %p = call ptr @resolve_own(ptr %rec, i64 %i, ptr %env, ptr %own)
  %j = add i64 %i, 2
  %row = call i64 @word(ptr %rec, i64 %j)
  %ahead = mul i64 %first, %row
  %q = getelementptr i8, ptr %p, i64 %ahead
  ret ptr %q
}
; A product on rows %first and the %n - 1 that follow of matrix %matrix; %is_first: no block of it was before.
; %dims_at: where its batch dims are. HALVES: %is_new says that the thread has not copied what blocks of it share.
define internal void @block_gemm(ptr %rec, ptr %env, ptr %own, i64 %matrix, i64 %first, i64 %n,
                                 i1 %is_first, i64 %dims_at, i1 %is_new) {
entry:
  %size_of_block = alloca i64
  store i64 %n, ptr %size_of_block
  %fn = call ptr @wordptr(ptr %rec, i64 2)
  %ndims = call i64 @word(ptr %rec, i64 3)
  %dim = call i64 @word(ptr %rec, i64 4)
  %a = call ptr @block_operand(ptr %rec, i64 5, ptr %env, ptr %own, i64 %first)
  %b = call ptr @block_operand(ptr %rec, i64 8, ptr %env, ptr %own, i64 %first)
  %c = call ptr @block_operand(ptr %rec, i64 11, ptr %env, ptr %own, i64 %first)
  %ta = getelementptr i64, ptr %rec, i64 14
  %tb = getelementptr i64, ptr %rec, i64 15
  %whole0 = getelementptr i64, ptr %rec, i64 16
  %whole1 = getelementptr i64, ptr %rec, i64 17
  %whole2 = getelementptr i64, ptr %rec, i64 18
  %is0 = icmp eq i64 %dim, 0
  %is1 = icmp eq i64 %dim, 1
  %is2 = icmp eq i64 %dim, 2
  %d0 = select i1 %is0, ptr %size_of_block, ptr %whole0
  %d1 = select i1 %is1, ptr %size_of_block, ptr %whole1
  %d2 = select i1 %is2, ptr %size_of_block, ptr %whole2
  %lda = getelementptr i64, ptr %rec, i64 19
  %ldb = getelementptr i64, ptr %rec, i64 20
  %ldc = getelementptr i64, ptr %rec, i64 21
  %alpha = getelementptr i64, ptr %rec, i64 22
  %which = select i1 %is_first, i64 23, i64 24
  %beta = getelementptr i64, ptr %rec, i64 %which
  %dims = getelementptr i64, ptr %rec, i64 %dims_at
  %batch = call { i64, i64, i64 } @offsets(ptr %dims, i64 %ndims, i64 %matrix)
  %oa = extractvalue { i64, i64, i64 } %batch, 0
  %ob = extractvalue { i64, i64, i64 } %batch, 1
  %oc = extractvalue { i64, i64, i64 } %batch, 2
  %pa = getelementptr i8, ptr %a, i64 %oa
  %pb = getelementptr i8, ptr %b, i64 %ob
  %pc = getelementptr i8, ptr %c, i64 %oc
  %has_tiles = icmp eq i64 %dims_at, 34
  br i1 %has_tiles, label %ask, label %library
ask:                                      ; pairs of rows need an even k, and oneDNN may be switched off
  %kk = load i64, ptr %d2
  %odd = trunc i64 %kk to i1
  br i1 %odd, label %library, label %tiles
tiles:                     ; packs before it asks: what blocks share is there even if oneDNN is switched on between them
  %nn = load i64, ptr %d0
  %mm = load i64, ptr %d1
  %first_at = call i64 @word(ptr %rec, i64 30)
  %packed = getelementptr i8, ptr %own, i64 %first_at
  %varies = call i64 @word(ptr %rec, i64 31)
  %changes = icmp ne i64 %varies, 0
  %packs = or i1 %changes, %is_new
  br i1 %packs, label %pack, label %packed_b
pack:
  %pack_b = call ptr @wordptr(ptr %rec, i64 29)
  %lda1 = load i64, ptr %lda
  call void %pack_b(ptr %pa, i64 %lda1, i64 %kk, i64 %nn, ptr %packed)
  br label %packed_b
packed_b:
  %could_pack = call ptr @wordptr(ptr %rec, i64 27)
  %type32 = call i32 @word32(ptr %rec, i64 28)
  %type = trunc i32 %type32 to i8
  %can = call zeroext i1 %could_pack(i8 signext %type)
  br i1 %can, label %allowed, label %library
allowed:
  %turn = call ptr @wordptr(ptr %rec, i64 32)
  %is_turned = icmp ne ptr %turn, null
  %ldb1 = load i64, ptr %ldb
  br i1 %is_turned, label %turned, label %multiply
turned:
  %second_at = call i64 @word(ptr %rec, i64 33)
  %rows_of_a = getelementptr i8, ptr %own, i64 %second_at
  call void %turn(ptr %pb, i64 %ldb1, i64 %kk, i64 %mm, ptr %rows_of_a)
  br label %multiply
multiply:
  %pm = phi ptr [ %pb, %allowed ], [ %rows_of_a, %turned ]
  %ldm = phi i64 [ %ldb1, %allowed ], [ %kk, %turned ]
  %ldc1 = load i64, ptr %ldc
  %beta1 = load float, ptr %beta
  %adds = fcmp une float %beta1, 0.0
  %brgemm = call ptr @wordptr(ptr %rec, i64 25)
  %release = call ptr @wordptr(ptr %rec, i64 26)
  call void %brgemm(i64 %mm, i64 %nn, i64 %kk, i64 %ldm, i64 %nn, i64 %ldc1, i1 zeroext %adds, ptr %pm,
                    ptr %packed, ptr %pc, i1 zeroext true)
  call void %release(i1 zeroext true)
  ret void
library:
  call void %fn(ptr %ta, ptr %tb, ptr %d0, ptr %d1, ptr %d2, ptr %alpha, ptr %pa, ptr %lda,
                ptr %pb, ptr %ldb, ptr %beta, ptr %pc, ptr %ldc)
  ret void
}
; Block %block of matrix %matrix, whose rows in the results of sums are those of matrix %result. %opens: no
; block of the matrix was before; %begins: none of these rows of the results; %is_new: this thread did none of the
; matrix just before.
define internal void @one_block(ptr %rec, ptr %env, i64 %matrix, i64 %block, i64 %result, i1 %opens,
                                i1 %begins, i1 %is_new, ptr %own, ptr %error) {
entry:
  %rows = call i64 @word(ptr %rec, i64 4)
  %most = call i64 @word(ptr %rec, i64 5)
  %body = getelementptr i64, ptr %rec, i64 15
  %first = mul i64 %block, %most
  %left = sub i64 %rows, %first
  %n = call i64 @llvm.umin.i64(i64 %left, i64 %most)
  %before = mul i64 %matrix, %rows
  %row0 = add i64 %before, %first
  %before1 = mul i64 %result, %rows
  %row1 = add i64 %before1, %first
  br label %steps
steps:
  %step = phi ptr [ %body, %entry ], [ %after, %next ]
  %op = call i64 @word(ptr %step, i64 0)
  switch i64 %op, label %finished [ i64 1, label %kernel
                                    i64 2, label %gemm
                                    i64 7, label %sum
                                    i64 8, label %halves ]
kernel:
  %fn = call ptr @wordptr(ptr %step, i64 2)
  call void @block_kernel(ptr %step, i64 3, ptr %fn, ptr %env, ptr %own, i64 %row0, i64 %n, ptr %error)
  br label %next
gemm:
  call void @block_gemm(ptr %step, ptr %env, ptr %own, i64 %matrix, i64 %first, i64 %n, i1 %opens,
                        i64 25, i1 false)
  br label %next
halves:
  call void @block_gemm(ptr %step, ptr %env, ptr %own, i64 %matrix, i64 %first, i64 %n, i1 %opens,
                        i64 34, i1 %is_new)
  br label %next
sum:
  %fn0 = call ptr @wordptr(ptr %step, i64 2)
  %fn1 = call ptr @wordptr(ptr %step, i64 3)
  %fn2 = select i1 %begins, ptr %fn0, ptr %fn1
  call void @block_kernel(ptr %step, i64 4, ptr %fn2, ptr %env, ptr %own, i64 %row1, i64 %n, ptr %error)
  br label %next
next:
  %length = call i64 @word(ptr %step, i64 1)
  %after = getelementptr i64, ptr %step, i64 %length
  br label %steps
finished:
  ret void
}
; Blocks %lo to %hi - 1 of all matrices, or, when they go in order, those of matrices %lo to %hi - 1.
define internal void @block_range(ptr %rec, ptr %env, i64 %lo, i64 %hi, ptr %own, ptr %error) {
entry:
  %count = call i64 @word(ptr %rec, i64 3)
  %in_order = call i64 @word(ptr %rec, i64 6)
  %whole = icmp ne i64 %in_order, 0
  %each = select i1 %whole, i64 %count, i64 1
  %begin = mul i64 %lo, %each
  %end = mul i64 %hi, %each
  br label %loop
loop:
  %at = phi i64 [ %begin, %entry ], [ %following, %one ]
  %more = icmp ult i64 %at, %end
  br i1 %more, label %one, label %done
one:
  %matrix = udiv i64 %at, %count
  %block = urem i64 %at, %count
  %opens = icmp eq i64 %block, 0
  %is_start = icmp eq i64 %at, %begin
  %is_new = or i1 %is_start, %opens
  call void @one_block(ptr %rec, ptr %env, i64 %matrix, i64 %block, i64 0, i1 %opens, i1 true, i1 %is_new,
                       ptr %own, ptr %error)
  %following = add i64 %at, 1
  br label %loop
done:
  ret void
}
define internal i64 @members(ptr %rec) alwaysinline {
  %outer = call i64 @word(ptr %rec, i64 11)
  %inner = call i64 @word(ptr %rec, i64 13)
  %members = mul i64 %outer, %inner
  ret i64 %members
}
define internal i64 @runs(ptr %rec) alwaysinline {
  %count = call i64 @word(ptr %rec, i64 3)
  %length = call i64 @word(ptr %rec, i64 14)
  %more = add i64 %count, %length
  %most = sub i64 %more, 1
  %runs = udiv i64 %most, %length
  ret i64 %runs
}
; Runs %lo to %hi - 1 of wave %wave.
define internal void @wave_range(ptr %rec, ptr %env, i64 %wave, i64 %lo, i64 %hi, ptr %own, ptr %error) {
entry:
  %count = call i64 @word(ptr %rec, i64 3)
  %groups = call i64 @word(ptr %rec, i64 12)
  %inner = call i64 @word(ptr %rec, i64 13)
  %length = call i64 @word(ptr %rec, i64 14)
  %members = call i64 @members(ptr %rec)
  %runs = call i64 @runs(ptr %rec)
  %few = icmp ule i64 %members, %runs
  %least = call i64 @llvm.umin.i64(i64 %members, i64 %runs)
  %most = call i64 @llvm.umax.i64(i64 %members, i64 %runs)
  %last_member = sub i64 %members, 1
  %last_run = sub i64 %runs, 1
  br label %loop
loop:
  %at = phi i64 [ %lo, %entry ], [ %following, %finished ]
  %more = icmp ult i64 %at, %hi
  br i1 %more, label %one, label %done
one:
  %group = udiv i64 %at, %least
  %here = urem i64 %at, %least
  %ahead = add i64 %here, %wave
  %around = urem i64 %ahead, %most
  %member = select i1 %few, i64 %here, i64 %around
  %run = select i1 %few, i64 %around, i64 %here
  %place = udiv i64 %member, %inner
  %within = urem i64 %member, %inner
  %m0 = mul i64 %place, %groups
  %m1 = add i64 %m0, %group
  %m2 = mul i64 %m1, %inner
  %matrix = add i64 %m2, %within
  %start = call i64 @llvm.umin.i64(i64 %member, i64 %last_run)
  %is_start = icmp eq i64 %run, %start
  %earliest = call i64 @llvm.umin.i64(i64 %run, i64 %last_member)
  %begins = icmp eq i64 %member, %earliest
  %first = mul i64 %run, %length
  %beyond = add i64 %first, %length
  %end = call i64 @llvm.umin.i64(i64 %beyond, i64 %count)
  br label %blocks
blocks:
  %block = phi i64 [ %first, %one ], [ %block1, %run_one ]
  %left = icmp ult i64 %block, %end
  br i1 %left, label %run_one, label %finished
run_one:
  %is_first = icmp eq i64 %block, %first
  %opens = and i1 %is_first, %is_start
  call void @one_block(ptr %rec, ptr %env, i64 %matrix, i64 %block, i64 %group, i1 %opens, i1 %begins,
                       i1 %is_first, ptr %own, ptr %error)
  %block1 = add i64 %block, 1
  br label %blocks
finished:
  %following = add i64 %at, 1
  br label %loop
done:
  ret void
}
declare i64 @llvm.umax.i64(i64, i64)
declare i64 @llvm.umin.i64(i64, i64)
; What threads share out at one time: matrices, or blocks of all matrices, or those of a wave.
define internal i64 @block_units(ptr %rec) alwaysinline {
  %matrices = call i64 @word(ptr %rec, i64 2)
  %count = call i64 @word(ptr %rec, i64 3)
  %groups = call i64 @word(ptr %rec, i64 12)
  %members = call i64 @members(ptr %rec)
  %runs = call i64 @runs(ptr %rec)
  %least = call i64 @llvm.umin.i64(i64 %members, i64 %runs)
  %of_wave = mul i64 %groups, %least
  %sums = icmp ne i64 %groups, 0
  %in_order = call i64 @word(ptr %rec, i64 6)
  %whole = icmp ne i64 %in_order, 0
  %blocks = mul i64 %matrices, %count
  %apart = select i1 %whole, i64 %matrices, i64 %blocks
  %units = select i1 %sums, i64 %of_wave, i64 %apart
  ret i64 %units
}
define internal void @block_share(ptr %rec, ptr %env, i64 %wave, i64 %lo, i64 %hi, ptr %own, ptr %error) {
  %groups = call i64 @word(ptr %rec, i64 12)
  %sums = icmp ne i64 %groups, 0
  br i1 %sums, label %waves, label %apart
waves:
  call void @wave_range(ptr %rec, ptr %env, i64 %wave, i64 %lo, i64 %hi, ptr %own, ptr %error)
  ret void
apart:
  call void @block_range(ptr %rec, ptr %env, i64 %lo, i64 %hi, ptr %own, ptr %error)
  ret void
}
define internal void @block_task(ptr %task) {
  %local = alloca i64
  store i64 0, ptr %local
  %rec = load ptr, ptr %task
  %p1 = getelementptr %Blocks, ptr %task, i32 0, i32 1
  %env = load ptr, ptr %p1
  %p2 = getelementptr %Blocks, ptr %task, i32 0, i32 2
  %openmp = load ptr, ptr %p2
  %p3 = getelementptr %Blocks, ptr %task, i32 0, i32 3
  %memory = load ptr, ptr %p3
  %p4 = getelementptr %Blocks, ptr %task, i32 0, i32 4
  %error = load ptr, ptr %p4
  %units = call i64 @block_units(ptr %rec)
  %range = call { i64, i64 } @share(ptr %openmp, i64 %units)
  %lo = extractvalue { i64, i64 } %range, 0
  %hi = extractvalue { i64, i64 } %range, 1
  %number = call ptr @wordptr(ptr %openmp, i64 1)
  %t32 = call i32 %number()
  %t = sext i32 %t32 to i64
  %bytes = call i64 @word(ptr %rec, i64 10)
  %place = mul i64 %t, %bytes
  %own = getelementptr i8, ptr %memory, i64 %place
  %p5 = getelementptr %Blocks, ptr %task, i32 0, i32 5
  %wave = load i64, ptr %p5
  call void @block_share(ptr %rec, ptr %env, i64 %wave, i64 %lo, i64 %hi, ptr %own, ptr %local)
  %bits = load i64, ptr %local
  %failed = icmp ne i64 %bits, 0
  br i1 %failed, label %report, label %done
report:
  %old = atomicrmw or ptr %error, i64 %bits monotonic
  br label %done
done:
  ret void
}
define internal void @run_blocks(ptr %rec, ptr %env, ptr %error, ptr %task) {
entry:
  %units = call i64 @block_units(ptr %rec)
  %threads = call i64 @word(ptr %env, i64 0)
  %room = call i64 @word(ptr %rec, i64 7)
  %most = call i64 @llvm.umin.i64(i64 %threads, i64 %room)
  %team = call i64 @llvm.umin.i64(i64 %most, i64 %units)
  %memory = call ptr @resolve(ptr %rec, i64 8, ptr %env)
  %many = icmp ugt i64 %team, 1
  %openmp = call ptr @wordptr(ptr %env, i64 1)
  store ptr %rec, ptr %task
  %p1 = getelementptr %Blocks, ptr %task, i32 0, i32 1
  store ptr %env, ptr %p1
  %p2 = getelementptr %Blocks, ptr %task, i32 0, i32 2
  store ptr %openmp, ptr %p2
  %p3 = getelementptr %Blocks, ptr %task, i32 0, i32 3
  store ptr %memory, ptr %p3
  %p4 = getelementptr %Blocks, ptr %task, i32 0, i32 4
  store ptr %error, ptr %p4
  %p5 = getelementptr %Blocks, ptr %task, i32 0, i32 5
  %gomp = call ptr @wordptr(ptr %openmp, i64 0)
  %team32 = trunc i64 %team to i32
  %groups = call i64 @word(ptr %rec, i64 12)
  %sums = icmp ne i64 %groups, 0
  %members = call i64 @members(ptr %rec)
  %runs = call i64 @runs(ptr %rec)
  %around = call i64 @llvm.umax.i64(i64 %members, i64 %runs)
  %waves = select i1 %sums, i64 %around, i64 1
  br label %loop
loop:
  %wave = phi i64 [ 0, %entry ], [ %wave1, %next ]
  %more = icmp ult i64 %wave, %waves
  br i1 %more, label %run, label %done
run:
  store i64 %wave, ptr %p5
  br i1 %many, label %parallel, label %serial
serial:
  call void @block_share(ptr %rec, ptr %env, i64 %wave, i64 0, i64 %units, ptr %memory, ptr %error)
  br label %next
parallel:
  call void %gomp(ptr @block_task, ptr %task, i32 %team32, i32 0)
  br label %next
next:
  %wave1 = add i64 %wave, 1
  br label %loop
done:
  ret void
}
"""
