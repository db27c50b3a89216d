"""The classic PPO loop of a hundred tutorials, working again. TRL had it until version 0.11 and then took it out.

    from transformers import AutoTokenizer                                            # the old lines
    from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer

    from minirl.classic import AutoModelForCausalLMWithValueHead, AutoTokenizer, PPOConfig, PPOTrainer     # the new one

    for batch in trainer.dataloader:
        responses = trainer.generate(batch["input_ids"], return_prompt=False, max_new_tokens=20, do_sample=True)
        scores = [reward(tokenizer.decode(response)) for response in responses]
        stats = trainer.step(batch["input_ids"], responses, scores)

Names, defaults and the numbers in `stats` are TRL's; what happens inside is `minirl.train.ppo.improve`, to be read there.
Where the old loop let a well-known mistake pass, this one repairs it or says so, once, on stderr. The SFT that often comes
first runs too: AutoModelForCausalLM, Trainer, TrainingArguments, DataCollatorForLanguageModeling, TextDataset. A tokenizer
of transformers works as well as ours, and so does any dataset that is a list of dicts, torch's or Hugging Face's.
"""

from minirl.classic.config import PPOConfig
from minirl.classic.models import (
    AutoModelForCausalLM,
    AutoModelForCausalLMWithValueHead,
    AutoModelForSequenceClassification,
    create_reference_model,
)
from minirl.classic.ppo import LengthSampler, PPOTrainer, respond_to_batch, set_seed
from minirl.classic.sft import DataCollatorForLanguageModeling, SFTTrainer, TextDataset, Trainer, TrainingArguments
from minirl.classic.tokenizer import AutoTokenizer

GPT2LMHeadModel = AutoModelForCausalLM
GPT2Tokenizer = GPT2TokenizerFast = AutoTokenizer

__all__ = [
    "AutoModelForCausalLM",
    "AutoModelForCausalLMWithValueHead",
    "AutoModelForSequenceClassification",
    "AutoTokenizer",
    "DataCollatorForLanguageModeling",
    "GPT2LMHeadModel",
    "GPT2Tokenizer",
    "GPT2TokenizerFast",
    "LengthSampler",
    "PPOConfig",
    "PPOTrainer",
    "SFTTrainer",
    "TextDataset",
    "Trainer",
    "TrainingArguments",
    "create_reference_model",
    "respond_to_batch",
    "set_seed",
]
