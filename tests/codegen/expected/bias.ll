target triple = "x86_64-unknown-linux-gnu"
define void @bias(ptr %buffers, ptr %sizes, i64 %begin, i64 %end, ptr %error) nounwind {
  %b0.at = getelementptr ptr, ptr %buffers, i64 0
  %b0 = load ptr, ptr %b0.at
  %b1.at = getelementptr ptr, ptr %buffers, i64 1
  %b1 = load ptr, ptr %b1.at
  %b2.at = getelementptr ptr, ptr %buffers, i64 2
  %b2 = load ptr, ptr %b2.at
  call fastcc void @bias.body(ptr %b0, ptr %b1, ptr %b2, i64 %begin, i64 %end, ptr %error)
  ret void
}
define internal fastcc void @bias.body(ptr noalias readonly %b0, ptr noalias readonly %b1, ptr noalias %b2, i64 %begin, i64 %end, ptr noalias %error) noinline nounwind {
entry:
  %slot.1 = alloca i64, align 64
  %slot.2 = alloca i64, align 64
  %slot.7 = alloca i64, align 64
  %slot.8 = alloca i64, align 64
  %slot.9 = alloca i64, align 64
  store i64 0, ptr %slot.1
  store i64 0, ptr %slot.2
  %v.3 = icmp slt i64 %begin, %end
  br i1 %v.3, label %then.4, label %done.5
then.4:
  %i.6 = udiv i64 %begin, 4
  store i64 %i.6, ptr %slot.7
  %i.10 = urem i64 %begin, 4
  store i64 %i.10, ptr %slot.8
  store i64 %begin, ptr %slot.9
  br label %repeat.11
repeat.11:
  %i.13 = load i64, ptr %slot.7
  %v.14 = load i64, ptr %slot.9
  %v.15 = load i64, ptr %slot.8
  %i.16 = sub nsw i64 %end, %v.14
  %i.17 = sub nsw i64 4, %v.15
  %x.18 = call i64 @llvm.smin.i64(i64 %i.16, i64 %i.17)
  %i.19 = add nsw i64 %v.15, %x.18
  %i.20 = mul nsw i64 %v.15, 32
  %i.21 = mul nsw i64 %i.19, 32
  %x.22 = call i64 @llvm.smin.i64(i64 %i.21, i64 100)
  %i.23 = sub nsw i64 %x.22, %i.20
  %i.24 = udiv i64 %i.23, 32
  %i.25 = mul nsw i64 %i.24, 32
  %i.26 = add nsw i64 %i.20, %i.25
  %i.31 = mul nsw i64 %i.13, 100
  %p.35 = getelementptr float, ptr %b1, i64 %i.13
  %v.46 = icmp slt i64 %i.20, %i.26
  br i1 %v.46, label %head.27, label %done.29
head.27:
  %v.36 = load float, ptr %p.35, align 4
  %h.37 = insertelement <32 x float> poison, float %v.36, i64 0
  %s.38 = shufflevector <32 x float> %h.37, <32 x float> poison, <32 x i32> zeroinitializer
  br label %j.loop.28
j.loop.28:
  %j.30 = phi i64 [ %i.20, %head.27 ], [ %j.30.next, %j.loop.28 ]
  %i.32 = add nsw i64 %i.31, %j.30
  %p.33 = getelementptr float, ptr %b0, i64 %i.32
  %v.34 = load <32 x float>, ptr %p.33, align 4
  %v.39 = fadd <32 x float> %v.34, %s.38
  %v.40 = fcmp ogt <32 x float> %v.39, %s.38
  %v.41 = select <32 x i1> %v.40, <32 x float> %v.39, <32 x float> %s.38
  %v.42 = fcmp uno <32 x float> %v.39, %v.39
  %v.43 = select <32 x i1> %v.42, <32 x float> %v.39, <32 x float> %v.41
  %p.44 = getelementptr float, ptr %b2, i64 %i.32
  store <32 x float> %v.43, ptr %p.44, align 4
  %j.30.next = add nuw nsw i64 %j.30, 32
  %again.45 = icmp slt i64 %j.30.next, %i.26
  br i1 %again.45, label %j.loop.28, label %done.29
done.29:
  %v.70 = icmp slt i64 %i.26, %x.22
  br i1 %v.70, label %head.47, label %done.49
head.47:
  %v.60 = load float, ptr %p.35, align 4
  %h.61 = insertelement <16 x float> poison, float %v.60, i64 0
  %s.62 = shufflevector <16 x float> %h.61, <16 x float> poison, <16 x i32> zeroinitializer
  br label %j.loop.48
j.loop.48:
  %j.50 = phi i64 [ %i.26, %head.47 ], [ %j.50.next, %j.loop.48 ]
  %i.51 = sub nsw i64 %x.22, %j.50
  %x.52 = call i64 @llvm.smin.i64(i64 %i.51, i64 16)
  %v.53 = trunc i64 %x.52 to i32
  %h.54 = insertelement <16 x i32> poison, i32 %v.53, i64 0
  %s.55 = shufflevector <16 x i32> %h.54, <16 x i32> poison, <16 x i32> zeroinitializer
  %v.56 = icmp ugt <16 x i32> %s.55, <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7, i32 8, i32 9, i32 10, i32 11, i32 12, i32 13, i32 14, i32 15>
  %i.57 = add nsw i64 %i.31, %j.50
  %p.58 = getelementptr float, ptr %b0, i64 %i.57
  %v.59 = call <16 x float> @llvm.masked.load.v16f32.p0(ptr align 4 %p.58, <16 x i1> %v.56, <16 x float> splat (float 0x0000000000000000))
  %v.63 = fadd <16 x float> %v.59, %s.62
  %v.64 = fcmp ogt <16 x float> %v.63, %s.62
  %v.65 = select <16 x i1> %v.64, <16 x float> %v.63, <16 x float> %s.62
  %v.66 = fcmp uno <16 x float> %v.63, %v.63
  %v.67 = select <16 x i1> %v.66, <16 x float> %v.63, <16 x float> %v.65
  %p.68 = getelementptr float, ptr %b2, i64 %i.57
  call void @llvm.masked.store.v16f32.p0(<16 x float> %v.67, ptr align 4 %p.68, <16 x i1> %v.56)
  %j.50.next = add nuw nsw i64 %j.50, 16
  %again.69 = icmp slt i64 %j.50.next, %x.22
  br i1 %again.69, label %j.loop.48, label %done.49
done.49:
  %i.71 = add nsw i64 %v.14, %x.18
  store i64 %i.71, ptr %slot.9
  store i64 0, ptr %slot.8
  %i.72 = add nsw i64 %i.13, 1
  %i.73 = icmp eq i64 %i.72, 6
  %v.74 = select i1 %i.73, i64 0, i64 %i.72
  store i64 %v.74, ptr %slot.7
  %v.75 = zext i1 %i.73 to i64
  %v.76 = icmp slt i64 %i.71, %end
  br i1 %v.76, label %repeat.11, label %done.12
done.12:
  br label %done.5
done.5:
  %v.77 = load i64, ptr %slot.1
  %v.78 = icmp ne i64 %v.77, 0
  br i1 %v.78, label %then.79, label %done.80
then.79:
  %v.81 = atomicrmw or ptr %error, i64 %v.77 monotonic
  br label %done.80
done.80:
  ret void
}
declare i64 @llvm.smin.i64(i64, i64)
declare <16 x float> @llvm.masked.load.v16f32.p0(ptr, <16 x i1>, <16 x float>)
declare void @llvm.masked.store.v16f32.p0(<16 x float>, ptr, <16 x i1>)
!0 = !{i32 1}
