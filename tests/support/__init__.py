"""What the tests share; a module for each idea."""
