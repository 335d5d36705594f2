"""Place experts on a main host and on functions elsewhere, after Remoe (arXiv 2512.18674).

    activation     SPS      which experts a prompt will use, s̃[layer, expert]
    pre_allocation MMP      the least main memory whose worst case keeps the targets: fraction b
    utility        u        which experts of a layer stay local
    memory         λ, T(y)  how much memory each function gets (`sizes` where T is no curve)
    replicas       z, LPT   how many copies of each, until the targets hold
    planner                 the stages in a row; `placement_file` keeps the result

Nothing here measures or opens a model: numbers come in, a placement comes out. docs/placement.md.
"""
