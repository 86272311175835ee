"""What is wrong with rows as text: repeats, leaks, answers that teach nothing, damage; and what is done about it."""
