"""CUDA kernels without a device: their LLVM code on the processor, their PTX, and the report of ptxas."""

import ctypes
import re
from itertools import product
from typing import Any

import llvmlite.binding as llvm
from cuda.bindings import nvjitlink
from numba import cuda
from numba.cuda import types
from numba.cuda.compiler import _compile_pyfunc_with_fixup

CAPABILITIES = ((7, 5), (8, 0), (9, 0), (10, 0))
ARITHMETIC = {"add": "fadd", "mul": "fmul", "div": "fdiv"}
REGISTERS = ("tid", "ctaid", "ntid", "nctaid")


def _library(made: Any, **how: Any) -> Any:
    function, signature = made
    return _compile_pyfunc_with_fixup(function, signature, device=False, abi="numba", **how)[0]


def ptx(made: Any, capability: tuple[int, int]) -> str:
    """Return the PTX for a compute capability."""
    code, _ = cuda.compile_ptx(*made, cc=capability, device=False)
    return str(code)


def ptx_for_each(made: Any) -> dict[tuple[int, int], str]:
    """Return the PTX for every capability. Numba's part, two thirds of the time, is done once."""
    library = _library(made, cc=CAPABILITIES[0])
    return {capability: str(library.get_asm_str(cc=capability)) for capability in CAPABILITIES}


def linked(made: Any, capability: tuple[int, int]) -> tuple[str, str]:
    """Return the PTX after optimisation at link time, as a launch links it, and the report of ptxas."""
    code, _ = cuda.compile(*made, cc=capability, device=False, output="ltoir", abi="numba")
    options = [f"-arch=sm_{capability[0]}{capability[1]}", "-lto"]

    def link(more: str, size: Any, get: Any) -> str:
        handle = nvjitlink.create(3, [*options, more])
        nvjitlink.add_data(handle, nvjitlink.InputType.LTOIR, code, len(code), "kernel")
        nvjitlink.complete(handle)
        text = bytearray(size(handle))
        get(handle, text)
        nvjitlink.destroy(handle)
        return text.decode()

    return (
        link("-ptx", nvjitlink.get_linked_ptx_size, nvjitlink.get_linked_ptx),
        link("-verbose", nvjitlink.get_info_log_size, nvjitlink.get_info_log),
    )


def _for_the_processor(code: str) -> str:
    """Return LLVM code for the processor, with the GPU's rounded operations and thread registers replaced."""
    code = re.sub(r"^target .*$", "", code, flags=re.M).replace('@"llvm.nvvm.', '@"nvvm.')
    declared = re.findall(r'^declare (\w+) *@"nvvm\.([\w.]+)"\(.*$', code, flags=re.M)
    code = re.sub(r'^declare .*@"nvvm\..*$', "", code, flags=re.M)
    made = [f"@{name} = global i32 0" for name in REGISTERS]
    for kind, name in declared:
        if found := re.fullmatch(r"(add|mul|div)\.rn\.[fd]", name):
            body = f"(%T %a, %T %b) {{ %r = {ARITHMETIC[found[1]]} %T %a, %b\n ret %T %r }}"
        elif name.startswith(("fabs", "sqrt")):
            plain = f"llvm.{name.split('.')[0]}.{'f32' if kind == 'float' else 'f64'}"
            made.append(f'declare {kind} @"{plain}"({kind})')
            body = f'(%T %a) {{ %r = call %T @"{plain}"(%T %a)\n ret %T %r }}'
        else:
            *_, register, axis = name.split(".")
            body = f"() {{ %r = load i32, i32* @{register}\n ret i32 %r }}" if axis == "x" else "() { ret i32 1 }"
        made.append(f'define %T @"nvvm.{name}"{body}'.replace("%T", kind))
    return "\n".join([code, *made])


CTYPES = {types.int64: ctypes.c_int64, types.float32: ctypes.c_float, types.float64: ctypes.c_double}


class OnProcessor:
    """A kernel whose LLVM code is compiled for the processor and run thread by thread."""

    def __init__(self, made: Any) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        text = _for_the_processor(_library(made, cc=(9, 0)).get_llvm_str())
        module = llvm.parse_assembly(text)
        module.verify()
        machine = llvm.Target.from_default_triple().create_target_machine(opt=2)
        self._engine = llvm.create_mcjit_compiler(module, machine)
        kinds = [kind for given in made[1].args for kind in (given if isinstance(given, types.BaseTuple) else [given])]
        name = re.search(r'^define void @"([^"]+)"', text, flags=re.M)[1]
        address = self._engine.get_function_address(name)
        self._call = ctypes.CFUNCTYPE(None, *(CTYPES[kind] for kind in kinds))(address)
        self._registers = {
            name: ctypes.c_int32.from_address(self._engine.get_global_value_address(name)) for name in REGISTERS
        }

    def __call__(self, blocks: int, threads: int, *arguments: Any) -> None:
        """Run all threads of all blocks, one after the other."""
        flat = [x for given in arguments for x in (given if isinstance(given, tuple) else (given,))]
        self._registers["ntid"].value, self._registers["nctaid"].value = threads, blocks
        for block, thread in product(range(blocks), range(threads)):
            self._registers["ctaid"].value, self._registers["tid"].value = block, thread
            self._call(*flat)
