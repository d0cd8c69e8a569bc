"""Tasks on whole texts and documents. Pre- and post-processing is NumPy; a framework only runs the batches."""
