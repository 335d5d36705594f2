"""A discrete-event simulator of requests on main hosts whose experts are partly on functions."""
