"""Attributes of transformers' classes that are not here, or cannot be changed: each is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llavakit.core.errors import UnsupportedAttributeError

__all__ = ["check_assignment", "missing_attribute"]

_NO_TRAINING = "training is not part of this release"
_NO_WRITING = "`llavakit convert` writes checkpoints"
_NO_HOOKS = "the engine does not call through this object; use the torch modules in `.model`"

# Why, and what to do; completes "LlavaForConditionalGeneration has no 'save_pretrained': ".
_REASONS = {
    "add_special_tokens": "the vocabulary is that of the checkpoint",
    "add_tokens": "the vocabulary is that of the checkpoint",
    "apply_chat_template": "use the processor's",
    "backend_tokenizer": "the tokenizers library's object is inside of `.backend`",
    "base_model": "the torch module is `.model`",
    "chat_template": "set the processor's",
    "compute_transition_scores": "take them from output_logits: logits.log_softmax(-1) at the chosen tokens",
    "compute_loss": _NO_TRAINING,
    "disable_adapters": "adapters are not part of this release; merge them into the checkpoint first",
    "enable_input_require_grads": _NO_TRAINING,
    "from_config": "a model is made by from_pretrained",
    "generate_batch": "pass a padded batch to generate()",
    "gradient_checkpointing_disable": _NO_TRAINING,
    "gradient_checkpointing_enable": _NO_TRAINING,
    "hf_device_map": "a model is on one device; see `.device`",
    "load_adapter": "adapters are not part of this release; merge them into the checkpoint first",
    "load_state_dict": "write into the tensors of state_dict() under torch.no_grad(), or load another folder",
    "merge_and_unload": "adapters are not part of this release; merge them into the checkpoint first",
    "post_init": "a model is made by from_pretrained",
    "prepare_inputs_for_generation": "generate() takes the processor's tensors as they are",
    "prepare_for_model": "call the tokenizer with text",
    "push_to_hub": "write a folder with `llavakit convert` and upload it with `hf upload`",
    "register_forward_hook": _NO_HOOKS,
    "register_forward_pre_hook": _NO_HOOKS,
    "resize_token_embeddings": "the vocabulary is that of the checkpoint",
    "save_pretrained": _NO_WRITING,
    "set_adapter": "adapters are not part of this release; merge them into the checkpoint first",
    "set_attn_implementation": "attention runs through torch's SDPA",
    "set_input_embeddings": "write into the weight of get_input_embeddings() under torch.no_grad()",
    "set_output_embeddings": "write into the weight of get_output_embeddings() under torch.no_grad()",
    "tie_weights": "they are tied where config.json says so",
    "to_json_string": "use json.dumps(config.to_dict())",
    "train_new_from_iterator": "the vocabulary is that of the checkpoint",
    "zero_grad": _NO_TRAINING,
}


def missing_attribute(owner: str, name: str) -> UnsupportedAttributeError:
    """Say that a class has no such attribute, and what to do instead where that is known."""
    reason = _REASONS.get(name)
    advice = f"{reason}." if reason else "check its spelling; docs/transformers.md lists what there is."
    return UnsupportedAttributeError(f"{owner} has no {name!r}: {advice}", name=name)


def check_assignment(owner: Any, name: str, value: Any, fixed: Mapping[str, str]) -> bool:
    """Decide about an assignment to an attribute.

    Parameters
    ----------
    owner : object
        Whose attribute it is.
    fixed : mapping of str to str
        Attributes that cannot be changed, with the reason.

    Returns
    -------
    bool
        Whether it is to be carried out: False for a fixed attribute that has the value already (a list for a tuple
        will do).

    Raises
    ------
    UnsupportedAttributeError
        If a fixed attribute has another value, or there is no such attribute and that is known.
    """
    if name in _REASONS:
        raise missing_attribute(type(owner).__name__, name)
    if name not in fixed:
        return True
    if _as_list(value) != _as_list(found := getattr(owner, name)):
        raise UnsupportedAttributeError(
            f"{type(owner).__name__}.{name} is {found!r} and cannot be set to {value!r}: {fixed[name]}.", name=name
        )
    return False


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
