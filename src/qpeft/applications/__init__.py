"""From a table or a published data set to a fine-tuned model in use.

* `data_sets`: the data sets known by name, and where they are read from.
* `columns`, `task`: what a row may hold, how it becomes a sentence, what the model is asked.
* `preparation`: check, split, write the rows with a card and a recipe; a user's own table.
* `scoring`: task metrics of a run next to the base model and scikit-learn baselines; model card, picture.
* `predict`: labels for the rows of a table. `serving`: an OpenAI-compatible chat API.
"""
