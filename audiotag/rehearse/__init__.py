"Run an inference notebook at home as Kaggle would: its limits, and a hidden test of the full size."
