"""Does the framework compute on a GPU what it computes on the CPU, and how fast?

``python benchmarks/gpu/check.py`` answers both on one GPU, in at most 8 minutes. It needs PyTorch 2.11 or newer,
transformers 5.17 or newer, peft, safetensors and numpy, and a checkout of this repository: nothing has to be
installed, and there is no Ray, pydantic or network. ``python benchmarks/gpu/train.py`` measures training steps on any
number of GPUs with any settings of the backend, and needs the packages installed.

To add a case
-------------
Write a function that takes a :class:`gpu.registry.Machine`, decorate it with :func:`gpu.registry.case`, and put it into
a module that :mod:`gpu.cases` imports::

    @case("equality", seconds=20)
    def my_kernel(machine: Machine) -> Iterator[Comparison]:
        '''What is compared, in one line: it is shown by --list.'''
        expected = in_float64_on_the_cpu(...)
        found = on_the_device(..., device=machine.device)
        yield compare("forward", found, expected, relative=machine.rounding(torch.bfloat16))

The name is the function's. ``seconds`` is its deadline on an H200. It yields :class:`gpu.registry.Comparison` values
(``equality``: each must hold) or :class:`gpu.registry.Speed` values (``speed``), one by one, and raises
:class:`gpu.registry.Skip` where a machine cannot do it. What was yielded before an exception is kept in the results.

- Expected values come from an oracle: transformers or plain PyTorch in float64 on the CPU (:mod:`gpu.oracle`).
- Tolerances follow from the dtype and the number of roundings (:func:`gpu.registry.rounding`), not from what came out.
- With ``--device cpu`` the same function runs on the CPU at the size ``tiny``, as a test of the suite.
- Settings of backend and generator are :mod:`gpu.settings`, which a test compares with the config models.
"""
