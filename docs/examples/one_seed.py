"""What a study would have said with fewer seeds: ``python one_seed.py STUDY [RUNS_DIR]``. Trains what is missing."""

import sys

import fromscratch

study = fromscratch.run_study(sys.argv[1], runs_dir=sys.argv[2] if len(sys.argv) > 2 else "runs")
most = max(len(arm.seeds) for arm in study.folder.study.arms)

print(f"{'seeds':5}  {'arm':12}  {'effect':>8}  {'1 / p':>6}  verdict")
for seeds in range(1, most + 1):
    for arm in study.judge(seeds=seeds).result.arms:
        effect = "-" if arm.effect is None else f"{arm.effect:+.4f}"
        evidence = "-" if arm.evidence is None else f"{1 / arm.evidence.p_different:.1f}"
        print(f"{seeds:5}  {arm.arm:12}  {effect:>8}  {evidence:>6}  {arm.verdict}")
