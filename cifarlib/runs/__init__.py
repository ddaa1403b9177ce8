"""Records and how the missing ones are made: schema, store, tidy frames; sweeps, merge, verify."""
