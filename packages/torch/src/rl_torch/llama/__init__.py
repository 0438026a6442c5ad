"""Decoder layers of Llama (Touvron et al. 2023) and its relatives with a backward pass of their own, for the CPU.

There a layer of a small model spends as long on passes over memory as on its products: norms, rotary embedding,
activation and attention are many operations each, and as many again for their gradients. Here each is one function
forward and one backward, and the two halves of a layer are put together from them (:mod:`rl_torch.llama.halves`).
:func:`rl_torch.llama.layers.use_own_layers` has a transformers model call them; its parameters stay where they are.
"""
