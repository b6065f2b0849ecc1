//! Pruning one linear by its Gram. Knows matrices only.
