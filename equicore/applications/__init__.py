"""Applications of equicore, one package each: a thin adapter, its data and its experiment."""
