"""How new weights reach the generators: the controllers of each transport, which move references and no bytes."""
