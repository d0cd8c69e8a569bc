"""What a few tools must be told about the models; everything else works without it (`docs/ecosystem.md`)."""
