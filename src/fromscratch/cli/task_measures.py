"""What is measured and printed of a finished run, beside its losses, by its task."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fromscratch.session.plan import PlannedRun


def measure_task(plan: "PlannedRun", path: Path, device: str | None, *, as_json: bool) -> dict[str, Any]:
    """Measures a finished run; returns what is printed of it. Empty for tasks without measures of their own."""
    from fromscratch.config.tune import Classify

    return _measure_classifier(path, device, as_json=as_json) if isinstance(plan.config.tune, Classify) else {}


def _measure_classifier(path: Path, device: str | None, *, as_json: bool) -> dict[str, Any]:
    """Measures the best checkpoint of a finished run; returns what is printed of it."""
    from fromscratch.finetuning.classifier_report import PICTURE_FILE, report_on_run
    from fromscratch.formats.model_sources import open_model
    from fromscratch.machine.hardware import find_hardware

    loaded = open_model(str(path), find_hardware(device), may_classify=True)
    report = report_on_run(loaded)
    if as_json:
        return {"classification": report}
    part = "test" if "test" in report else "validation"
    found = report[part]
    rows = {
        f"{part} texts": found["texts"],
        "accuracy": f"{found['accuracy']:.1%} (always the most frequent class: {found['majority_accuracy']:.1%})",
        "balanced accuracy": f"{found['balanced_accuracy']:.1%} (always the same class: {1 / len(loaded.classes):.1%})",
        "calibration error": f"{found['calibration_error']:.3f} at temperature {report['temperature']:.2f}, "
        f"{found['calibration_error_uncalibrated']:.3f} without",
        "confusion matrix": str(loaded.run.charts / PICTURE_FILE) if loaded.run else None,
    }
    for name, values in found["classes"].items():
        precision, recall = (
            "unknown" if values[key] is None else f"{values[key]:.1%}" for key in ("precision", "recall")
        )
        rows[f"class {name}"] = f"{values['texts']:,} texts, precision {precision}, recall {recall}"
    return rows
