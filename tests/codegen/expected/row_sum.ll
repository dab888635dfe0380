target triple = "x86_64-unknown-linux-gnu"
define void @row_sum(ptr %buffers, ptr %sizes, i64 %begin, i64 %end, ptr %error) nounwind {
  %b0.at = getelementptr ptr, ptr %buffers, i64 0
  %b0 = load ptr, ptr %b0.at
  %b1.at = getelementptr ptr, ptr %buffers, i64 1
  %b1 = load ptr, ptr %b1.at
  call fastcc void @row_sum.body(ptr %b0, ptr %b1, i64 %begin, i64 %end, ptr %error)
  ret void
}
define internal fastcc void @row_sum.body(ptr noalias readonly %b0, ptr noalias %b1, i64 %begin, i64 %end, ptr noalias %error) noinline nounwind {
entry:
  %slot.1 = alloca i64, align 64
  %slot.2 = alloca i64, align 64
  %slot.6 = alloca i64, align 64
  %slot.7 = alloca i64, align 64
  %slot.8 = alloca i64, align 64
  %slot.15 = alloca <64 x float>, align 64
  %slot.16 = alloca <16 x float>, align 64
  store i64 0, ptr %slot.1
  store i64 0, ptr %slot.2
  %v.3 = icmp slt i64 %begin, %end
  br i1 %v.3, label %then.4, label %done.5
then.4:
  store i64 %begin, ptr %slot.6
  store i64 0, ptr %slot.7
  store i64 %begin, ptr %slot.8
  br label %repeat.9
repeat.9:
  %i.11 = load i64, ptr %slot.6
  %v.12 = load i64, ptr %slot.8
  %i.13 = sub nsw i64 %end, %v.12
  %x.14 = call i64 @llvm.smin.i64(i64 %i.13, i64 1)
  store <64 x float> splat (float 0x0000000000000000), ptr %slot.15
  store <16 x float> splat (float 0x0000000000000000), ptr %slot.16
  %i.21 = mul nsw i64 %i.11, 80
  %p.22 = getelementptr float, ptr %b0, i64 %i.21
  %v.23 = load <64 x float>, ptr %p.22, align 4
  br label %head.17
head.17:
  %v.24 = load <64 x float>, ptr %slot.15
  %v.25 = fadd <64 x float> %v.24, %v.23
  store <64 x float> %v.25, ptr %slot.15
  br label %done.19
done.19:
  %i.30 = add nsw i64 %i.21, 64
  %p.31 = getelementptr float, ptr %b0, i64 %i.30
  %v.32 = load <16 x float>, ptr %p.31, align 4
  br label %head.26
head.26:
  %v.33 = load <16 x float>, ptr %slot.16
  %v.34 = fadd <16 x float> %v.33, %v.32
  store <16 x float> %v.34, ptr %slot.16
  br label %done.28
done.28:
  %v.35 = load <64 x float>, ptr %slot.15
  %v.36 = load <16 x float>, ptr %slot.16
  %v.37 = shufflevector <64 x float> %v.35, <64 x float> poison, <32 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7, i32 8, i32 9, i32 10, i32 11, i32 12, i32 13, i32 14, i32 15, i32 16, i32 17, i32 18, i32 19, i32 20, i32 21, i32 22, i32 23, i32 24, i32 25, i32 26, i32 27, i32 28, i32 29, i32 30, i32 31>
  %v.38 = shufflevector <64 x float> %v.35, <64 x float> poison, <32 x i32> <i32 32, i32 33, i32 34, i32 35, i32 36, i32 37, i32 38, i32 39, i32 40, i32 41, i32 42, i32 43, i32 44, i32 45, i32 46, i32 47, i32 48, i32 49, i32 50, i32 51, i32 52, i32 53, i32 54, i32 55, i32 56, i32 57, i32 58, i32 59, i32 60, i32 61, i32 62, i32 63>
  %v.39 = fadd <32 x float> %v.37, %v.38
  %v.40 = shufflevector <32 x float> %v.39, <32 x float> poison, <16 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7, i32 8, i32 9, i32 10, i32 11, i32 12, i32 13, i32 14, i32 15>
  %v.41 = shufflevector <32 x float> %v.39, <32 x float> poison, <16 x i32> <i32 16, i32 17, i32 18, i32 19, i32 20, i32 21, i32 22, i32 23, i32 24, i32 25, i32 26, i32 27, i32 28, i32 29, i32 30, i32 31>
  %v.42 = fadd <16 x float> %v.40, %v.41
  %v.43 = fadd <16 x float> %v.42, %v.36
  %v.44 = shufflevector <16 x float> %v.43, <16 x float> poison, <8 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7>
  %v.45 = shufflevector <16 x float> %v.43, <16 x float> poison, <8 x i32> <i32 8, i32 9, i32 10, i32 11, i32 12, i32 13, i32 14, i32 15>
  %v.46 = fadd <8 x float> %v.44, %v.45
  %v.47 = shufflevector <8 x float> %v.46, <8 x float> poison, <4 x i32> <i32 0, i32 1, i32 2, i32 3>
  %v.48 = shufflevector <8 x float> %v.46, <8 x float> poison, <4 x i32> <i32 4, i32 5, i32 6, i32 7>
  %v.49 = fadd <4 x float> %v.47, %v.48
  %v.50 = shufflevector <4 x float> %v.49, <4 x float> poison, <2 x i32> <i32 0, i32 1>
  %v.51 = shufflevector <4 x float> %v.49, <4 x float> poison, <2 x i32> <i32 2, i32 3>
  %v.52 = fadd <2 x float> %v.50, %v.51
  %v.53 = extractelement <2 x float> %v.52, i64 0
  %v.54 = extractelement <2 x float> %v.52, i64 1
  %v.55 = fadd float %v.53, %v.54
  %p.56 = getelementptr float, ptr %b1, i64 %i.11
  store float %v.55, ptr %p.56, align 4
  %i.57 = add nsw i64 %v.12, %x.14
  store i64 %i.57, ptr %slot.8
  store i64 0, ptr %slot.7
  %i.58 = add nsw i64 %i.11, 1
  %i.59 = icmp eq i64 %i.58, 4
  %v.60 = select i1 %i.59, i64 0, i64 %i.58
  store i64 %v.60, ptr %slot.6
  %v.61 = zext i1 %i.59 to i64
  %v.62 = icmp slt i64 %i.57, %end
  br i1 %v.62, label %repeat.9, label %done.10
done.10:
  br label %done.5
done.5:
  %v.63 = load i64, ptr %slot.1
  %v.64 = icmp ne i64 %v.63, 0
  br i1 %v.64, label %then.65, label %done.66
then.65:
  %v.67 = atomicrmw or ptr %error, i64 %v.63 monotonic
  br label %done.66
done.66:
  ret void
}
declare i64 @llvm.smin.i64(i64, i64)
!0 = !{i32 1}
