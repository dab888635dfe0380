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
  %slot1 = alloca i64, align 64
  %slot2 = alloca i64, align 64
  %slot6 = alloca i64, align 64
  %slot7 = alloca i64, align 64
  %slot8 = alloca i64, align 64
  %slot15 = alloca <64 x float>, align 64
  %slot16 = alloca <16 x float>, align 64
  store i64 0, ptr %slot1
  store i64 0, ptr %slot2
  %v3 = icmp slt i64 %begin, %end
  br i1 %v3, label %then4, label %done5
then4:
  store i64 %begin, ptr %slot6
  store i64 0, ptr %slot7
  store i64 %begin, ptr %slot8
  br label %repeat9
repeat9:
  %i11 = load i64, ptr %slot6
  %v12 = load i64, ptr %slot8
  %i13 = sub nsw i64 %end, %v12
  %x14 = call i64 @llvm.smin.i64(i64 %i13, i64 1)
  store <64 x float> splat (float 0x0000000000000000), ptr %slot15
  store <16 x float> splat (float 0x0000000000000000), ptr %slot16
  %i21 = mul nsw i64 %i11, 80
  %p22 = getelementptr float, ptr %b0, i64 %i21
  %v23 = load <64 x float>, ptr %p22, align 4
  br label %head17
head17:
  %v24 = load <64 x float>, ptr %slot15
  %v25 = fadd <64 x float> %v24, %v23
  store <64 x float> %v25, ptr %slot15
  br label %done19
done19:
  %i30 = add nsw i64 %i21, 64
  %p31 = getelementptr float, ptr %b0, i64 %i30
  %v32 = load <16 x float>, ptr %p31, align 4
  br label %head26
head26:
  %v33 = load <16 x float>, ptr %slot16
  %v34 = fadd <16 x float> %v33, %v32
  store <16 x float> %v34, ptr %slot16
  br label %done28
done28:
  %v35 = load <64 x float>, ptr %slot15
  %v36 = load <16 x float>, ptr %slot16
  %v37 = shufflevector <64 x float> %v35, <64 x float> poison, <32 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7, i32 8, i32 9, i32 10, i32 11, i32 12, i32 13, i32 14, i32 15, i32 16, i32 17, i32 18, i32 19, i32 20, i32 21, i32 22, i32 23, i32 24, i32 25, i32 26, i32 27, i32 28, i32 29, i32 30, i32 31>
  %v38 = shufflevector <64 x float> %v35, <64 x float> poison, <32 x i32> <i32 32, i32 33, i32 34, i32 35, i32 36, i32 37, i32 38, i32 39, i32 40, i32 41, i32 42, i32 43, i32 44, i32 45, i32 46, i32 47, i32 48, i32 49, i32 50, i32 51, i32 52, i32 53, i32 54, i32 55, i32 56, i32 57, i32 58, i32 59, i32 60, i32 61, i32 62, i32 63>
  %v39 = fadd <32 x float> %v37, %v38
  %v40 = shufflevector <32 x float> %v39, <32 x float> poison, <16 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7, i32 8, i32 9, i32 10, i32 11, i32 12, i32 13, i32 14, i32 15>
  %v41 = shufflevector <32 x float> %v39, <32 x float> poison, <16 x i32> <i32 16, i32 17, i32 18, i32 19, i32 20, i32 21, i32 22, i32 23, i32 24, i32 25, i32 26, i32 27, i32 28, i32 29, i32 30, i32 31>
  %v42 = fadd <16 x float> %v40, %v41
  %v43 = fadd <16 x float> %v42, %v36
  %v44 = shufflevector <16 x float> %v43, <16 x float> poison, <8 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7>
  %v45 = shufflevector <16 x float> %v43, <16 x float> poison, <8 x i32> <i32 8, i32 9, i32 10, i32 11, i32 12, i32 13, i32 14, i32 15>
  %v46 = fadd <8 x float> %v44, %v45
  %v47 = shufflevector <8 x float> %v46, <8 x float> poison, <4 x i32> <i32 0, i32 1, i32 2, i32 3>
  %v48 = shufflevector <8 x float> %v46, <8 x float> poison, <4 x i32> <i32 4, i32 5, i32 6, i32 7>
  %v49 = fadd <4 x float> %v47, %v48
  %v50 = shufflevector <4 x float> %v49, <4 x float> poison, <2 x i32> <i32 0, i32 1>
  %v51 = shufflevector <4 x float> %v49, <4 x float> poison, <2 x i32> <i32 2, i32 3>
  %v52 = fadd <2 x float> %v50, %v51
  %v53 = extractelement <2 x float> %v52, i64 0
  %v54 = extractelement <2 x float> %v52, i64 1
  %v55 = fadd float %v53, %v54
  %p56 = getelementptr float, ptr %b1, i64 %i11
  store float %v55, ptr %p56, align 4
  %i57 = add nsw i64 %v12, %x14
  store i64 %i57, ptr %slot8
  store i64 0, ptr %slot7
  %i58 = add nsw i64 %i11, 1
  %i59 = icmp eq i64 %i58, 4
  %v60 = select i1 %i59, i64 0, i64 %i58
  store i64 %v60, ptr %slot6
  %v61 = zext i1 %i59 to i64
  %v62 = icmp slt i64 %i57, %end
  br i1 %v62, label %repeat9, label %done10
done10:
  br label %done5
done5:
  %v63 = load i64, ptr %slot1
  %v64 = icmp ne i64 %v63, 0
  br i1 %v64, label %then65, label %done66
then65:
  %v67 = atomicrmw or ptr %error, i64 %v63 monotonic
  br label %done66
done66:
  ret void
}
declare i64 @llvm.smin.i64(i64, i64)
