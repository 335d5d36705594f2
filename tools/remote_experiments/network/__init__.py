"""Two hosts on one machine: network namespaces with a line of a given rate and delay between them."""
