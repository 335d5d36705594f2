# libllama builds graphs; what computes is ggml, which keeps its optimisation. This saves most of the
# time that its compiling takes.
cmake_language(DEFER CALL target_compile_options llama PRIVATE -O0)
