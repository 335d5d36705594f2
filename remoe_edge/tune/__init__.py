"""Router fine-tuning and its evaluation; the only part of the package that imports torch.

`decoder` runs a Mixture-of-Experts model whose weights are frozen and whose routers are passed in,
`losses` says what a router should be good at, `trainer` moves the routers there, `measure` tells
what came of it.
"""
