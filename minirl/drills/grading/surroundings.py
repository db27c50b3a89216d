"""What all code in a process shares: was it changed? Told, and put back where that is possible. Nothing here makes a verdict."""

import os
import signal
import sys
import threading

import torch

WATCHED = ["torch", "torch.nn.functional", "torch.autograd", "builtins", "math", "os", "sys", "json", "time"]


class Surroundings:
    """Taken before the submission runs."""

    def __init__(self):
        self.generator = torch.get_rng_state()
        self.states = {
            "torch.set_default_dtype": (torch.get_default_dtype, torch.set_default_dtype),
            "torch.set_grad_enabled": (torch.is_grad_enabled, torch.set_grad_enabled),
            "torch.set_num_threads": (torch.get_num_threads, torch.set_num_threads),
            "torch.autograd.set_detect_anomaly": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
            "torch.manual_seed": (
                torch.initial_seed,
                lambda _: torch.set_rng_state(self.generator),
            ),
            "torch.set_deterministic_debug_mode": (  # which torch.use_deterministic_algorithms sets too
                torch.get_deterministic_debug_mode,
                torch.set_deterministic_debug_mode,
            ),
        }
        self.values = {name: get() for name, (get, _) in self.states.items()}
        self.signals = {name: signal.getsignal(name) for name in signal.valid_signals()}
        self.threads = _threads()
        modules = [name for name in sys.modules if name.startswith("minirl.")] + WATCHED
        self.spaces = {name: sys.modules[name] for name in modules} | {"torch.Tensor": torch.Tensor}
        self.kept = {name: dict(vars(space)) for name, space in self.spaces.items()}

    def changes(self) -> list[str]:
        """Sentences without their subject. What was patched stays patched, and is told once."""
        said = self.changes_of_torch()
        for space, names in self.kept.items():
            now = vars(self.spaces[space])
            for name, value in names.items():
                if now.get(name) is not value and callable(value):
                    said.append(f"replaced {space}.{name}")
                    names[name] = now.get(name)
        for number, handler in self.signals.items():
            if signal.getsignal(number) != handler:
                said.append(f"set a handler for the signal {signal.Signals(number).name}")
                self.signals[number] = signal.getsignal(number)
        return said[:20]

    def changes_of_torch(self) -> list[str]:
        said = []
        for name, (get, put) in self.states.items():
            value = get()
            if value != self.values[name]:
                said.append(f"called {name}({str(value).removeprefix('torch.')})")
                put(self.values[name])
        return said

    def more_threads(self) -> int:
        return _threads() - self.threads


def _threads() -> int:
    """Of this process; Linux knows those that Python does not."""
    return len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else threading.active_count()
