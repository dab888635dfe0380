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
  %slot1 = alloca i64, align 64
  %slot2 = alloca i64, align 64
  %slot7 = alloca i64, align 64
  %slot8 = alloca i64, align 64
  %slot9 = alloca i64, align 64
  store i64 0, ptr %slot1
  store i64 0, ptr %slot2
  %v3 = icmp slt i64 %begin, %end
  br i1 %v3, label %then4, label %done5
then4:
  %i6 = udiv i64 %begin, 4
  store i64 %i6, ptr %slot7
  %i10 = urem i64 %begin, 4
  store i64 %i10, ptr %slot8
  store i64 %begin, ptr %slot9
  br label %repeat11
repeat11:
  %i13 = load i64, ptr %slot7
  %v14 = load i64, ptr %slot9
  %v15 = load i64, ptr %slot8
  %i16 = sub nsw i64 %end, %v14
  %i17 = sub nsw i64 4, %v15
  %x18 = call i64 @llvm.smin.i64(i64 %i16, i64 %i17)
  %i19 = add nsw i64 %v15, %x18
  %i20 = mul nsw i64 %v15, 32
  %i21 = mul nsw i64 %i19, 32
  %x22 = call i64 @llvm.smin.i64(i64 %i21, i64 100)
  %i23 = sub nsw i64 %x22, %i20
  %i24 = udiv i64 %i23, 32
  %i25 = mul nsw i64 %i24, 32
  %i26 = add nsw i64 %i20, %i25
  %i31 = mul nsw i64 %i13, 100
  %p35 = getelementptr float, ptr %b1, i64 %i13
  %v46 = icmp slt i64 %i20, %i26
  br i1 %v46, label %head27, label %done29
head27:
  %v36 = load float, ptr %p35, align 4
  %h37 = insertelement <32 x float> poison, float %v36, i64 0
  %s38 = shufflevector <32 x float> %h37, <32 x float> poison, <32 x i32> zeroinitializer
  br label %j.loop28
j.loop28:
  %j30 = phi i64 [ %i20, %head27 ], [ %j30.next, %j.loop28 ]
  %i32 = add nsw i64 %i31, %j30
  %p33 = getelementptr float, ptr %b0, i64 %i32
  %v34 = load <32 x float>, ptr %p33, align 4
  %v39 = fadd <32 x float> %v34, %s38
  %v40 = fcmp ogt <32 x float> %v39, %s38
  %v41 = select <32 x i1> %v40, <32 x float> %v39, <32 x float> %s38
  %v42 = fcmp uno <32 x float> %v39, %v39
  %v43 = select <32 x i1> %v42, <32 x float> %v39, <32 x float> %v41
  %p44 = getelementptr float, ptr %b2, i64 %i32
  store <32 x float> %v43, ptr %p44, align 4
  %j30.next = add nuw nsw i64 %j30, 32
  %again45 = icmp slt i64 %j30.next, %i26
  br i1 %again45, label %j.loop28, label %done29
done29:
  %v70 = icmp slt i64 %i26, %x22
  br i1 %v70, label %head47, label %done49
head47:
  %v60 = load float, ptr %p35, align 4
  %h61 = insertelement <16 x float> poison, float %v60, i64 0
  %s62 = shufflevector <16 x float> %h61, <16 x float> poison, <16 x i32> zeroinitializer
  br label %j.loop48
j.loop48:
  %j50 = phi i64 [ %i26, %head47 ], [ %j50.next, %j.loop48 ]
  %i51 = sub nsw i64 %x22, %j50
  %x52 = call i64 @llvm.smin.i64(i64 %i51, i64 16)
  %v53 = trunc i64 %x52 to i32
  %h54 = insertelement <16 x i32> poison, i32 %v53, i64 0
  %s55 = shufflevector <16 x i32> %h54, <16 x i32> poison, <16 x i32> zeroinitializer
  %v56 = icmp ugt <16 x i32> %s55, <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7, i32 8, i32 9, i32 10, i32 11, i32 12, i32 13, i32 14, i32 15>
  %i57 = add nsw i64 %i31, %j50
  %p58 = getelementptr float, ptr %b0, i64 %i57
  %v59 = call <16 x float> @llvm.masked.load.v16f32.p0(ptr align 4 %p58, <16 x i1> %v56, <16 x float> splat (float 0x0000000000000000))
  %v63 = fadd <16 x float> %v59, %s62
  %v64 = fcmp ogt <16 x float> %v63, %s62
  %v65 = select <16 x i1> %v64, <16 x float> %v63, <16 x float> %s62
  %v66 = fcmp uno <16 x float> %v63, %v63
  %v67 = select <16 x i1> %v66, <16 x float> %v63, <16 x float> %v65
  %p68 = getelementptr float, ptr %b2, i64 %i57
  call void @llvm.masked.store.v16f32.p0(<16 x float> %v67, ptr align 4 %p68, <16 x i1> %v56)
  %j50.next = add nuw nsw i64 %j50, 16
  %again69 = icmp slt i64 %j50.next, %x22
  br i1 %again69, label %j.loop48, label %done49
done49:
  %i71 = add nsw i64 %v14, %x18
  store i64 %i71, ptr %slot9
  store i64 0, ptr %slot8
  %i72 = add nsw i64 %i13, 1
  %i73 = icmp eq i64 %i72, 6
  %v74 = select i1 %i73, i64 0, i64 %i72
  store i64 %v74, ptr %slot7
  %v75 = zext i1 %i73 to i64
  %v76 = icmp slt i64 %i71, %end
  br i1 %v76, label %repeat11, label %done12
done12:
  br label %done5
done5:
  %v77 = load i64, ptr %slot1
  %v78 = icmp ne i64 %v77, 0
  br i1 %v78, label %then79, label %done80
then79:
  %v81 = atomicrmw or ptr %error, i64 %v77 monotonic
  br label %done80
done80:
  ret void
}
declare i64 @llvm.smin.i64(i64, i64)
declare <16 x float> @llvm.masked.load.v16f32.p0(ptr, <16 x i1>, <16 x float>)
declare void @llvm.masked.store.v16f32.p0(<16 x float>, ptr, <16 x i1>)
