"""The kernels on a GPU: first every one of them against float64, then how fast they are and how much memory they take.

    python tests/bench/gpu_kernels.py --out gpu_kernels.json       the checks, then the table; some ten minutes on an H100
    python tests/bench/gpu_kernels.py --check-only                 the checks alone
    python tests/bench/gpu_kernels.py --interpret                  no GPU: the same code on tiny sizes, whose times mean nothing

It needs minirl, PyTorch and Triton; Liger-Kernel and TRL join the table where they are installed. A figure stands beside two
ceilings that are measured first: a copy (bytes read and written a second) and a matrix product (operations a second).
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEAD = {"D 2048": (16, 1024, 2048, 151_936), "D 896": (16, 1024, 896, 151_936)}  # rows, tokens a row, width, vocabulary
TINY_HEAD = {"tiny": (2, 3, 16, 50)}
GOALS = {  # ms, or a share of the ceiling, on an H200
    ("GRPO head, forward + backward", "D 2048"): "48 ms",
    ("GRPO head, forward + backward", "D 896"): "26 ms",
    ("log-prob + entropy, forward", "D 2048"): "16.5 ms",
    ("GAE", "1024 x 1024"): "0.008 ms",
    ("RMSNorm, forward", "16384 x 2048"): "85%",
    ("RMSNorm, backward", "16384 x 2048"): "75%",
    ("SwiGLU, forward", "16384 x 5632"): "85%",
    ("SwiGLU, backward", "16384 x 5632"): "85%",
    ("decode, one token", "1.5B, 64 rows, context 1024"): "1.9 ms",
    ("generate", "1.5B, 64 rows, 16 + 128 tokens"): "a tenth of transformers",
}


@dataclass
class Row:
    name: str
    size: str
    work: float  # bytes moved at least, or operations
    ceiling: str  # "copy" or "matmul"
    runs: dict[str, Callable]  # what each contender calls
    calls: int = 1  # of the operation in one run
    results: dict = field(default_factory=dict)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check-only", action="store_true", help="no table")
    parser.add_argument("--interpret", action="store_true", help="Triton's interpreter on a CPU, tiny sizes")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which takes minutes")
    parser.add_argument("--out", type=Path, help="write everything to this JSON file")
    args = parser.parse_args()
    if args.interpret:
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports a kernel
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "kernels")]
    try:
        from minirl.kernels import check_machine

        check_machine("cpu" if args.interpret else "cuda")
    except (ImportError, ValueError) as error:
        print(f"{error}", file=sys.stderr)
        return 2
    device = "cpu" if args.interpret else "cuda"
    report = {"machine": machine(device), "versions": versions(), "interpreted": args.interpret}
    print(json.dumps(report, indent=1))
    import large

    report["checks"] = check_cases(device) + large.check_large(device)
    failed = [check for check in report["checks"] if not check["passed"]]
    print(f"{len(report['checks'])} checks, {len(failed)} failed")
    if not args.check_only and not failed:
        ceilings = measure_ceilings(device)
        report["ceilings"] = ceilings
        report["rows"] = [measured(row, ceilings, device) for row in rows(device, compiled=not args.no_compile)]
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if failed else 0


def machine(device: str) -> dict:
    import torch

    if device == "cpu":
        return {"name": platform.processor() or platform.machine(), "note": "interpreted: times mean nothing"}
    found = torch.cuda.get_device_properties(0)
    return {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "memory": found.total_memory,
        "multiprocessors": found.multi_processor_count,
        "cuda": torch.version.cuda,
    }


def versions() -> dict:
    found = {"python": platform.python_version()}
    for name in ("torch", "triton", "liger-kernel", "trl", "transformers"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


# The checks


def check_cases(device: str) -> list[dict]:
    """Every case of tests/kernels/cases.py: the largest error of each result in each precision."""
    import cases

    from minirl.kernels import TRITON

    worst = {}
    for family in cases.FAMILIES:
        for dtype in cases.DTYPES:
            for case in cases.cases(family, dtype):
                for name, (error, written) in cases.errors(case, getattr(TRITON, case.op), device).items():
                    key = (case.op, name, str(dtype)[6:])
                    if key not in worst or not error <= worst[key][0]:  # NaN is the largest
                        worst[key] = error, cases.TOLERANCE[written], str(case)
    print(f"{'kernel':18} {'result':24} {'inputs':10} {'error':>9} {'allowed':>9}")
    checks = []
    for (op, name, dtype), (error, allowed, case) in worst.items():
        checks.append({"op": op, "result": name, "dtype": dtype, "error": error, "allowed": allowed, "case": case})
        checks[-1]["passed"] = passed = error <= allowed
        print(f"{op:18} {name:24} {dtype:10} {error:9.1e} {allowed:9.1e}{'' if passed else '   FAILED ' + case}")
    return checks


# The table


def rows(device: str, compiled: bool):
    yield from memory_rows(device, compiled)
    yield from small_rows(device, compiled)
    yield from head_rows(device, compiled)
    yield from decode_rows(device)


def contenders(name: str, compiled: bool, liger: Callable | None) -> dict[str, Callable]:
    """The versions of an entry of the table: {who: function with the entry's arguments}."""
    import torch

    from minirl.kernels import TRITON
    from minirl.ops import TORCH

    found = {"minirl Triton": getattr(TRITON, name), "PyTorch": getattr(TORCH, name)}
    if compiled:
        found["torch.compile"] = torch.compile(getattr(TORCH, name), dynamic=False)
    return found | ({} if liger is None else {"Liger": liger})


def memory_rows(device: str, compiled: bool):
    """One pass over memory: RMSNorm, SwiGLU, RoPE. Forward alone, then backward alone."""
    import torch

    N, D, F, (B, H, S, E) = (16_384, 2048, 5632, (16, 16, 1024, 128)) if device == "cuda" else (8, 32, 48, (1, 2, 4, 8))

    def tensor(*shape):
        return torch.randn(*shape, device=device, dtype=torch.bfloat16).requires_grad_()

    functional = imported("liger_kernel.transformers.functional")
    angles = torch.rand(1, 1, S, E // 2, device=device)
    rope = torch.stack([torch.cat([angles.cos()] * 2, -1), torch.cat([-angles.sin(), angles.sin()], -1)]).bfloat16()
    jobs = [
        (
            *("RMSNorm", "rms_norm", f"{N} x {D}", (tensor(N, D), tensor(D)), {"eps": 1e-5}, (2, 3), N * D),
            functional and (lambda x, weight, *, eps: functional.liger_rms_norm(x, weight, eps)),
        ),
        (
            *("SwiGLU", "swiglu", f"{N} x {F}", (tensor(N, F), tensor(N, F)), {}, (3, 5), N * F),
            functional and functional.liger_swiglu,
        ),
        ("RoPE", "rotate", f"{B} x {H} x {S} x {E}", (tensor(B, H, S, E), rope), {}, (2, 2), B * H * S * E, None),
    ]
    for name, op, size, inputs, knobs, passes, numbers, liger in jobs:
        functions = contenders(op, compiled, liger)
        learns = [x for x in inputs if x.requires_grad]
        data = [x.detach() for x in inputs]
        forward = {who: (lambda f=f, d=data, k=knobs: f(*d, **k)) for who, f in functions.items()}
        yield Row(f"{name}, forward", size, 2 * passes[0] * numbers, "copy", forward)
        backward = {}
        for who, f in functions.items():
            y = f(*inputs, **knobs)
            g = torch.randn_like(y)
            backward[who] = lambda y=y, g=g, x=learns: torch.autograd.grad(y, x, g, retain_graph=True)
        yield Row(f"{name}, backward", size, 2 * passes[1] * numbers, "copy", backward)


def small_rows(device: str, compiled: bool):
    """GAE and the GRPO loss: eight sets of inputs in turn, since one would stay in the cache."""
    import torch

    B, T, sets = (1024, 1024, 8) if device == "cuda" else (2, 8, 2)
    mask = torch.ones(B, T, dtype=torch.bool, device=device)
    tables = [[torch.randn(B, T, device=device) - 3 for _ in range(3)] for _ in range(sets)]
    advantages = torch.randn(B, device=device)

    def gae(f):
        return lambda: [f(a, b, mask) for a, b, _ in tables]

    def loss(f):
        return lambda: [f(a, b, c, advantages, mask) for a, b, c in tables]

    size = f"{B} x {T}"
    for name, op, run, bytes_a_token in (("GAE", "gae", gae, 17), ("GRPO loss, forward", "grpo_loss", loss, 21)):
        functions = contenders(op, compiled and op != "gae", None)  # compile would unroll the loop over time
        yield Row(name, size, bytes_a_token * B * T, "copy", {who: run(f) for who, f in functions.items()}, sets)


def head_rows(device: str, compiled: bool):
    import torch
    import torch.nn.functional as F

    from minirl.kernels import TRITON
    from minirl.logprobs import entropy, token_logprobs
    from minirl.ops import TORCH

    def one_table(hidden, weight, tokens):
        logits = F.linear(hidden, weight)
        return token_logprobs(logits, tokens), entropy(logits.detach())

    trl = imported("trl.trainer.utils")

    def through_trl(hidden, weight, tokens):
        logits = F.linear(hidden, weight)
        return trl.selective_log_softmax(logits, tokens), trl.entropy_from_logits(logits.detach())

    heads = {"minirl Triton": TRITON.hidden_logprobs, "PyTorch, in chunks": TORCH.hidden_logprobs}
    heads["PyTorch, one table"] = one_table
    if compiled:
        heads["torch.compile, one table"] = torch.compile(one_table, dynamic=False)
    if trl:
        heads["TRL, one table"] = through_trl
    chunked_loss = imported("liger_kernel.chunked_loss")

    for size, (B, T, D, V) in (HEAD if device == "cuda" else TINY_HEAD).items():
        hidden = torch.randn(B, T, D, device=device, dtype=torch.bfloat16).requires_grad_()
        weight = (D**-0.5 * torch.randn(V, D, device=device)).bfloat16().requires_grad_()
        tokens = torch.randint(V, (B, T), device=device)
        old = torch.full((B, T), -10.0, device=device)
        advantages, mask = torch.randn(B, device=device), torch.ones(B, T, dtype=torch.bool, device=device)
        product = 2.0 * B * T * D * V

        def forward(f, h=hidden, w=weight, t=tokens):
            def run():
                with torch.no_grad():
                    f(h, w, t)

            return run

        def both(f, h=hidden, w=weight, t=tokens):
            return lambda: torch.autograd.grad(f(h, w, t)[0].sum(), (h, w))

        def grpo(f, h=hidden, w=weight, t=tokens, old=old, a=advantages, m=mask):
            return lambda: torch.autograd.grad(f(h, w, t, old, old, a, m)[0], (h, w))

        def liger(h=hidden, w=weight, t=tokens, old=old, a=advantages, m=mask):
            loss = chunked_loss.LigerFusedLinearGRPOLoss(beta=0.04, loss_type="grpo", compiled=compiled)
            found = loss(h, w, t, m, a, ref_per_token_logps=old, old_per_token_logps=old)[0]
            return torch.autograd.grad(found, (h, w))

        yield Row("log-prob + entropy, forward", size, product, "matmul", {k: forward(f) for k, f in heads.items()})
        yield Row("log-prob, forward + backward", size, 4 * product, "matmul", {k: both(f) for k, f in heads.items()})
        losses = {"minirl Triton": TRITON.grpo_head_loss, "PyTorch, in chunks": TORCH.grpo_head_loss}
        runs = {who: grpo(f) for who, f in losses.items()} | ({"Liger": liger} if chunked_loss else {})
        yield Row("GRPO head, forward + backward", size, 3 * product, "matmul", runs)


def decode_rows(device: str):
    """A model of Qwen2.5-1.5B's shape with random weights: one token for every row, and whole answers."""
    from dataclasses import replace

    import torch

    from minirl.attention import KVCache
    from minirl.decoder import Decoder
    from minirl.generate import generate
    from minirl.kernels import TRITON
    from minirl.kernels.decoding import Loop
    from minirl.model import Transformer, TransformerConfig
    from minirl.ops import TORCH

    gpu = device == "cuda"
    shape = {"vocab_size": 151_936, "width": 1536, "layers": 28, "heads": 12, "kv_heads": 2, "ffn": 8960}
    small = {"vocab_size": 50, "width": 16, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 24}
    rows, context, new, size = (64, 1024, 128, "1.5B, 64 rows") if gpu else (3, 12, 4, "tiny, 3 rows")
    config = TransformerConfig(**(shape if gpu else small), max_length=2048, qkv_bias=True, tied=True)
    with torch.device(device):
        model = Transformer(config).to(torch.bfloat16 if gpu else torch.float32).requires_grad_(False)
    weight = model.embed.weight
    uniform = torch.rand(rows, device=device)

    def step(ops, recorded: bool):
        def run():
            with torch.inference_mode():
                loop.position.fill_(context - 1)
                loop.step.zero_()
                loop.tokens.fill_(1)
                again()

        model.ops = ops
        with torch.inference_mode():
            cache = KVCache(config, rows, context, weight.device, weight.dtype)
            cache.keys.normal_(), cache.values.normal_()
            cache.length = context - 1
            loop = Loop(Decoder(model, cache), lambda logits, _: ops.sample(logits, uniform), rows, 2, None)
            again = loop.recorded(context) if recorded else lambda: loop.one_more(context)

        def with_its_table():  # a step that is not recorded asks the model for its table each time
            model.ops = ops
            run()

        return with_its_table

    read = weight.element_size() * (
        sum(p.numel() for p in model.parameters()) + 2 * KVCache(config, rows, context).keys.numel()
    )
    steps = {
        "minirl Triton, recorded": step(TRITON, True),
        "minirl PyTorch, recorded": step(TORCH, True),
        "minirl PyTorch, step by step": step(TORCH, False),
    }
    yield Row("decode, one token", f"{size}, context {context}", 2.0 * read, "copy", steps)

    prompts = [[1 + i % 40] * 16 for i in range(rows)]

    def answers(ops):
        def run():
            model.ops = ops
            generate(model, prompts, max_new_tokens=new)

        return run

    runs = {"minirl Triton": answers(TRITON), "minirl PyTorch": answers(TORCH)}
    runs["minirl PyTorch, recorded"] = answers(replace(TORCH, respond=TRITON.respond))
    transformers = imported("transformers") if gpu else None
    if transformers:
        names = {
            "vocab_size": "vocab_size",
            "width": "hidden_size",
            "layers": "num_hidden_layers",
            "ffn": "intermediate_size",
        }
        names |= {"heads": "num_attention_heads", "kv_heads": "num_key_value_heads"}
        theirs = transformers.Qwen2Config(**{names[k]: v for k, v in shape.items()}, tie_word_embeddings=True)
        with torch.device(device):
            other = transformers.Qwen2ForCausalLM(theirs).to(torch.bfloat16).eval()
        tokens = torch.tensor(prompts, device=device)
        knobs = {"max_new_tokens": new, "do_sample": True, "top_k": 0, "eos_token_id": None, "pad_token_id": 0}
        mask = torch.ones_like(tokens)
        runs["transformers"] = lambda: other.generate(input_ids=tokens, attention_mask=mask, **knobs)
    yield Row("generate", f"{size}, 16 + {new} tokens", 2.0 * read * new, "copy", runs)


def imported(name: str):
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


# Measuring


def milliseconds(run: Callable, device: str) -> float:
    """Median time of one call: on a GPU from a CUDA graph where it can be captured, so that launching costs nothing."""
    if device == "cpu":
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)
    import torch
    import triton.testing

    rough = triton.testing.do_bench(run, warmup=50, rep=200, return_mode="median")
    if rough > 2:  # the launches hide behind the work
        return rough
    try:
        with torch.cuda.stream(torch.cuda.Stream()):
            return min(rough, triton.testing.do_bench_cudagraph(run, rep=100, return_mode="median"))
    except RuntimeError:  # something in it cannot be captured
        return rough


def peak(run: Callable, device: str) -> int | None:
    """Bytes that were needed on top of what was there."""
    if device == "cpu":
        run()
        return None
    import torch

    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure_ceilings(device: str) -> dict:
    import torch

    n, side = (2**29, 8192) if device == "cuda" else (2**10, 32)
    a, b = (torch.randn(n, device=device, dtype=torch.bfloat16) for _ in range(2))
    copy = 4.0 * n / milliseconds(lambda: a.copy_(b), device) * 1e3
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    matmul = 2.0 * side**3 / milliseconds(lambda: a @ b, device) * 1e3
    print(f"ceilings: copy {copy / 1e12:.2f} TB/s, matrix product {matmul / 1e12:.0f} TFLOP/s")
    return {"copy": copy, "matmul": matmul}


def measured(row: Row, ceilings: dict, device: str) -> dict:
    import torch

    goal = GOALS.get((row.name, row.size))
    print(f"\n{row.name}, {row.size}" + (f"   (goal on an H200: {goal})" if goal else ""))
    for who, run in row.runs.items():
        try:
            memory = peak(run, device)  # a first call also compiles and warms up
            memory = peak(run, device)
            ms = milliseconds(run, device) / row.calls
        except torch.cuda.OutOfMemoryError:
            row.results[who] = {"error": "out of memory"}
            print(f"    {who:26} out of memory")
            continue
        except Exception as error:  # another library's version: its row says so, and the table goes on
            if who.startswith("minirl"):
                raise
            row.results[who] = {"error": f"{type(error).__name__}: {error}"}
            print(f"    {who:26} {type(error).__name__}: {str(error).splitlines()[0][:80]}")
            continue
        finally:
            if device == "cuda":
                torch.cuda.empty_cache()
        share = row.work / (ms * 1e-3) / ceilings[row.ceiling]
        row.results[who] = {"ms": ms, "share_of_ceiling": share, "extra_bytes": memory}
        extra = "" if memory is None else f"   {memory / 1e9:7.2f} GB more"
        print(f"    {who:26} {ms:10.4f} ms   {share:6.1%} of the {row.ceiling} ceiling{extra}")
    kept = {"name": row.name, "size": row.size, "work": row.work, "ceiling": row.ceiling, "goal": goal}
    return kept | {"results": row.results}


if __name__ == "__main__":
    sys.exit(main())
