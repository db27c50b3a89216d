"""Triton kernels under the names and signatures of `minirl.ops`: TRITON is the same table as TORCH, for an NVIDIA GPU.

    rmsnorm, rope, swiglu    one pass over memory where PyTorch takes several
    advantages               a recursion over time as a parallel scan
    policy                   a hundred small operations as one
    logprobs                 a matrix product that ends in three numbers a row, and not in a table of logits
    heads                    the loss's gradient written over the logits: three matrix products, not four
    sampling                 the next token from its logits in one launch
    decoding                 the loop of sampling recorded as CUDA graphs

Importing this without Triton is an ImportError, and calling it on an unsuitable machine a ValueError; both say what to do.
"""

from minirl.kernels import device  # first: it says what to do where Triton is missing
from minirl.kernels.advantages import gae
from minirl.kernels.decoding import respond
from minirl.kernels.head_losses import dpo_head_loss, grpo_head_loss, ppo_head_loss
from minirl.kernels.logprobs import hidden_logprobs
from minirl.kernels.policy import grpo_loss, ppo_clip_loss
from minirl.kernels.rmsnorm import rms_norm
from minirl.kernels.rope import rotate
from minirl.kernels.sampling import sample
from minirl.kernels.swiglu import swiglu
from minirl.ops import Ops

check_machine = device.check_machine

TRITON = Ops(
    rms_norm=rms_norm,
    rotate=rotate,
    swiglu=swiglu,
    hidden_logprobs=hidden_logprobs,
    gae=gae,
    grpo_loss=grpo_loss,
    ppo_clip_loss=ppo_clip_loss,
    grpo_head_loss=grpo_head_loss,
    ppo_head_loss=ppo_head_loss,
    dpo_head_loss=dpo_head_loss,
    sample=sample,
    respond=respond,
)

__all__ = ["TRITON", "check_machine", *Ops.__dataclass_fields__]
