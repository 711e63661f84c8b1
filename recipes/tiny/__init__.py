"""How `llava:tiny` is made: scenes, questions, training in four stages, evaluation. See README.md."""
