"""A transformers folder as an MLflow model, which `mlflow models serve` answers from without this project's code."""

from __future__ import annotations

from pathlib import Path

from tasks.errors import SpecRefused


def write_mlflow_model(folder: Path, target: Path, *, max_new_tokens: int = 48) -> None:
    """Write the generator in `folder` as an MLflow model of the transformers flavour: text in, continuation out.

    Raises:
        SpecRefused: the target is there already.
    """
    if target.exists():
        raise SpecRefused.one("E-EXPORT-001", target, "is there already", "name a new folder")
    import mlflow.transformers
    import transformers
    from mlflow.models import infer_signature

    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    settings = {"max_new_tokens": max_new_tokens, "do_sample": False, "return_full_text": False}
    mlflow.transformers.save_model(
        transformers_model={"model": model, "tokenizer": tokenizer},
        path=str(target),
        task="text-generation",
        signature=infer_signature("a request", "an answer", settings),
        model_config=settings,
        pip_requirements=["mlflow", "torch", "transformers"],
    )
