"""What a person looks at: trees kept on disk, the report made of a run, the tree on a terminal."""
