"""What a model looks at in a document: maps of attention, gradients, a page that shows them."""
