define void @matmul_4ade5aa2e76b(ptr readonly %b0, ptr readonly %b1, ptr %b2, i64 %size0, ptr noalias %ctx, i64 %begin, i64 %end) nounwind "no-builtins" "frame-pointer"="none" "tune-cpu"="haswell" "prefer-vector-width"="256" {
define void @program(ptr %ctx, i64 %tid) nounwind {
