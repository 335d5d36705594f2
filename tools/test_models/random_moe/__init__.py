"""Random Mixture-of-Experts GGUF files: any supported architecture, at any size.

`architectures` says which keys and tensors llama.cpp expects, `shape` how large they are,
`blocks` fills them with incompressible but sane values, `vocabulary` adds a tokenizer and
`writer` streams the file out. Tests use it for tiny models, `shape_moe.py` for models of published
size.
"""
