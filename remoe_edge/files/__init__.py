"""Files that more than one feature reads or writes."""
