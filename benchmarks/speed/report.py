"""The measurements as a Markdown table."""

from __future__ import annotations

from typing import Any

from livephoto_core.config import BaseShape

from .systems import NAMES

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def case_name(case: dict[str, Any]) -> str:
    """A case in a few words."""
    thin = "" if tuple(case["channels"]) == BaseShape().block_channels else f", widths {'/'.join(map(str, case['channels']))}"
    return f"{case['size']}x{case['size']}x{case['frames']}, cfg {case['cfg']:g}, {PRECISIONS[case['precision']]}{thin}"


def markdown(report: dict[str, Any]) -> str:
    """Machine, then a table for each kind of measurement that was made."""
    machine = report["machine"]
    lines = [f"{machine['device']}; torch {machine['torch']}, diffusers {machine['diffusers']}; {machine['date']}", ""]
    if report["steps"]:
        lines += ["| case | system | step (least to greatest) | LivePhoto / it | peak memory | LivePhoto / it | of peak FLOP/s |"]
        lines += ["|---|---|---|---|---|---|---|"]
    for entry in report["steps"]:
        own = entry["systems"]["livephoto"].get("peak_memory")
        for name, found in entry["systems"].items():
            time, memory = found["seconds"], found.get("peak_memory")
            ratio = "" if name == "livephoto" else f"{found['livephoto_ratio']:.2f}"
            lines.append(
                f"| {case_name(entry['case'])} | {NAMES[name]} | {time['median']:.3g} s ({time['least']:.3g} to "
                f"{time['greatest']:.3g}) | {ratio} | {f'{memory / 2**30:.2f} GiB' if memory else ''} | "
                f"{f'{own / memory:.2f}' if memory and name != 'livephoto' else ''} | {found['share_of_peak']:.0%} |"
            )
    if report["clips"]:
        names = report["clips"][0]["seconds"]
        lines += ["", f"| whole clip, LivePhoto's with prior inversion | steps | {' | '.join(NAMES[name] for name in names)} |"]
        lines += ["|---" * (2 + len(names)) + "|"]
        for entry in report["clips"]:
            times = " | ".join(f"{value['median']:.3g} s" for value in entry["seconds"].values())
            lines.append(f"| {case_name(entry['case'])} | {entry['steps']} | {times} |")
    for entry in report["comfyui"]:
        lines += ["", f"In ComfyUI, {case_name(entry['case'])}:"]
        if "error" in entry:
            lines.append(f"not measured ({entry['error']})")
            continue
        times = ", ".join(f"{name} {value['median']:.3g} s" for name, value in entry["seconds"].items())
        lines.append(f"{times}; LivePhoto / motion modules alone {entry['over_motion']:.2f}, / plain {entry['over_plain']:.2f}")
    for entry in report["windows"]:
        lines += ["", "In ComfyUI, the demo's clips, inversion included:"]
        if "error" in entry:
            lines.append(f"not measured ({entry['error']})")
            continue
        times = ", ".join(f"{name} {value['median']:.3g} s" for name, value in entry["seconds"].items())
        lines.append(f"{times}; 64 frames in windows of 16 / 16 frames {entry['64_over_16']:.2f}")
    if report["training"]:
        lines += ["", "| training, a clip a step | clips a second | LivePhoto / it | peak memory | LivePhoto / it |"]
        lines += ["|---|---|---|---|---|"]
    for entry in report["training"]:
        own = entry["systems"]["livephoto"]
        for name, found in entry["systems"].items():
            memory, ratio = found["peak_memory"], own["clips_a_second"] / found["clips_a_second"]
            lines.append(
                f"| {name}, {case_name(entry['case'])} | {found['clips_a_second']:.3g} | {ratio:.2f} | {memory / 2**30:.2f} GiB | "
                f"{own['peak_memory'] / memory:.2f} |"
            )
    if report["ssim"]:
        lines += ["", "| SSIM of a clip | clips a second | scikit-image's loop | times faster | difference |"]
        lines += ["|---|---|---|---|---|"]
    for entry in report["ssim"]:
        rates = entry["clips_a_second"]
        for name, times in entry["times_faster"].items():
            clip = f"{entry['size']}x{entry['size']}x{entry['frames']}{', compiled' if name == 'compiled' else ''}"
            difference = entry["difference"][name]
            lines.append(f"| {clip} | {rates[name]:.3g} | {rates['scikit-image']:.3g} | {times:.1f} | {difference:.0e} |")
    for entry in report["demo"]:
        lines += ["", f"The demo's clip, {entry['steps']} steps with guidance, inversion included:"]
        times = ", ".join(f"{name} {value['median']:.3g} s" for name, value in entry["seconds"].items())
        near = ", ".join(f"{name}'s frames are fp32's to {psnr:.0f} dB" for name, psnr in entry["psnr"].items())
        lines.append(f"{times}; {near}")
    return "\n".join(lines) + "\n"
