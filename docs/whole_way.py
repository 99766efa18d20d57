"""From a data set to evaluated results, with the public API of medar alone.

    volumes -> prepared cases -> tokenizer -> tokens -> generator -> synthetic volumes -> distances
                              -> segmentation network -> label maps -> Dice

Everything is tiny here, so that it runs in half a minute on a CPU: coarse phantoms, small networks,
a few steps. For useful results take your own data, and pass the path of a YAML file such as
`medar.find_config("hippocampus_mr", "tokenizer")` in place of the mappings below.

    python docs/whole_way.py OUT
"""

import sys
from pathlib import Path

import medar

TRAINING = {"steps": 10, "evaluate_every": 5, "learning_rate": 2e-3, "device": "cpu"}
TOKENIZER = {
    "model": {
        "width": 8,
        "grids": [[1, 1, 1], [3, 3, 3], [6, 6, 6]],
        "codebook": {"kind": "fsq", "size": 64, "width": 4},
    },
    "training": TRAINING,
}
GENERATOR = {"model": {"depth": 2, "head_width": 16}, "training": TRAINING}
SEGMENTATION = {"backbone": {"width": 8}, "data": {"batch_size": 2}, "training": TRAINING}


def main(out: Path) -> None:
    """Run every step and write its results below `out`."""
    # 1. Data: a folder of volumes and label maps; the plan brings them to one form.
    medar.write_phantoms(out / "raw", n=10, spacing=16.0)
    manifest = medar.read_manifest(out / "raw", fractions=(0.6, 0.2, 0.2))
    overrides = {"size": (24, 24, 24), "downsampling": (4, 4, 4), "mode": "volume"}
    plan = medar.plan_data_set(manifest, out / "prepared", overrides=overrides, workers=1)
    data = medar.prepare(manifest, plan, out / "prepared", workers=1).folder

    # 2. Tokenizer: volumes to tokens and back.
    medar.train_tokenizer(TOKENIZER, data, out / "tokenizer")
    tokenizer = medar.Tokenizer.from_pretrained(out / "tokenizer")
    scan = medar.read_volume(next((out / "raw").rglob("*.nii.gz")), modality="CT")
    print(f"one volume reconstructed: PSNR {tokenizer.reconstruct(scan).psnr:.1f} dB")
    print(f"validation cases: PSNR {medar.evaluate_tokenizer(tokenizer, data, 'val').psnr:.1f} dB")

    # 3. Generator: learns the tokens, and makes new volumes from them.
    tokens = medar.encode_data_set(data, out / "tokens", out / "tokenizer", device="cpu").folder
    medar.train_generator(GENERATOR, tokens, out / "generator")
    synthesizer = medar.Synthesizer.from_pretrained(out / "generator", device="cpu")
    for k, sample in enumerate(synthesizer(n=4, seed=0)):
        medar.write_nifti(out / "samples" / f"sample_{k}.nii.gz", sample.image)
    volumes = medar.read_generated(medar.generated_files(out / "samples"), plan)
    report = medar.evaluate_generation(volumes, data, split="held-out")
    distance = report.distances["radiomics-v2"]
    print(f"Frechet distance {distance.frechet:.0f}, of real volumes {distance.frechet_floor:.0f}")

    # 4. Segmentation: a network from the same prepared cases.
    medar.train_segmenter(SEGMENTATION, data, out / "segmenter")
    segmenter = medar.Segmenter.from_pretrained(out / "segmenter", device="cpu")
    medar.write_nifti(out / "label.nii.gz", medar.segment(segmenter, scan), grid="source")
    print("Dice:", medar.evaluate_segmentation(segmenter, data, "val").dice)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
