"""What the checker looks at: one module for each family of findings."""
