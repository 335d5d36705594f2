from remoe_edge.cli import main

main()
