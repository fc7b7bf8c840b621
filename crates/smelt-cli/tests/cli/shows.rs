//! Commands that only tell something.

use insta::assert_snapshot;
use serde_json::Value;

use crate::{Place, sample};

fn json(place: &Place, args: &str) -> Value {
    let output = place.output(args);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn help() {
    let place = Place::new();
    assert_snapshot!(place.run("--help"), @"
    exit 0
    --- stdout
    Turn a Hugging Face checkpoint into a quantized MLX model, in bounded memory

    Usage: smelt <COMMAND>

    Commands:
      quantize  Write a quantized model
      plan      Show what `quantize` would write; only a target of size or bits reads weights
      inspect   Say what a checkpoint is, and what would be in the way
      verify    Check a finished model: as the loaders see it, byte for byte, and against its source
      diff      Compare two models or checkpoints tensor by tensor
      report    Draw the report of a finished model as a page
      discover  Ask the installed mlx-lm or mlx-vlm how it lays a checkpoint out, without reading a
                weight
      families  List the model families that smelt knows
      recipes   List mlx-lm's recipes and oMLX's levels with their bits
      help      Print this message or the help of the given subcommand(s)

    Options:
      -h, --help     Print help
      -V, --version  Print version
    ");
    let version = place.run("--version");
    assert_eq!(version, format!("exit 0\n--- stdout\nsmelt {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
#[expect(clippy::too_many_lines, reason = "one text, as it is shown")]
fn help_of_quantize() {
    let place = Place::new();
    assert_snapshot!(place.run("quantize --help"), @"
    exit 0
    --- stdout
    Write a quantized model

    Usage: smelt quantize [OPTIONS] <MODEL>

    Arguments:
      <MODEL>
              Directory of the checkpoint: config.json, safetensors shards, tokenizer files

    Options:
      -o, --output <DIR>
              Directory to write: new, empty, or what a run that was stopped has left, which then goes
              on [default: the checkpoint's name with -4bit, -mxfp4 and so on, beside it]

          --dry-run
              Show the plan and stop before anything is written

          --no-resume
              Remove what an unfinished run has left in the directory and begin anew

          --strict
              Fail where something could only be done differently from what was asked

          --allow-nonfinite
              Go on when a weight holds NaN or infinity

          --allow-requantize
              Decode weights that MLX quantized already and quantize them again, which loses more

          --json
              Write JSON to standard output (docs/json.md describes it)

      -h, --help
              Print help (see a summary with '-h')

    How weights are stored:
          --bits <N>
              Bits of a weight: 2, 3, 4, 5, 6 or 8. Four is the usual choice; below, large models suffer
              least [default: 4, or what the mode has]

          --group-size <N>
              Weights that share a scale: 32, 64 or 128. Smaller is more exact, larger and slower
              [default: 64, or what the mode has]

          --mode <MODE>
              How codes become weights: `affine` fits most; the others store what newer hardware
              multiplies directly; `none` converts names and layout only [default: affine]

              Possible values:
              - affine: Integer codes with a scale and a bias for each group
              - mxfp4:  4-bit floats, groups of 32
              - mxfp8:  8-bit floats, groups of 32
              - nvfp4:  4-bit floats, groups of 16
              - none:   Nothing is quantized

          --rounding <ROUNDING>
              Whose ties are followed: `gpu` gives the bits that a Mac writes, `cpu` those that MLX
              writes on a CPU

              Possible values:
              - cpu: Halves to even
              - gpu: Halves away from zero
              
              [default: gpu]

          --override <REGEX=BITS[:GROUP[:MODE]]|keep>
              Store modules whose path matches REGEX in another format, or as they are with `keep`. Can
              be repeated; the last match wins

          --vision-bits <N>
              Bits of what sees or hears, which is left as it is without this

          --dtype <DTYPE>
              Type of scales and of what is not quantized: `keep` leaves the checkpoint's, `f16` suits
              M1 and M2

              Possible values:
              - keep: As in the checkpoint
              - bf16: bfloat16
              - f16:  IEEE half
              - f32:  IEEE single
              
              [default: keep]

          --method <METHOD>
              How codes are found: `search` looks for the scales of least error, `rtn` rounds between
              the extremes, bit for bit as MLX does

              Possible values:
              - search: Scales and biases of least squared error
              - rtn:    Rounding as MLX does it
              
              [default: search]

          --effort <EFFORT>
              How long the search goes on [default: default]

              Possible values:
              - fast:    Most of the gain
              - default: Nearly all of it
              - best:    What is left, at a third of the speed

          --imatrix <FILE>
              Weigh errors by the importance of input channels: an imatrix of llama.cpp (GGUF or .dat)
              or oMLX (.npz), or mean squares as safetensors (docs/bits.md)

          --transcode <TRANSCODE>
              What becomes of weights in a format that MLX has as well: `auto` moves their bits where as
              many are asked for as they have, `never` decodes them and quantizes again

              Possible values:
              - auto:  Where it is exact and no fewer bits are asked for
              - never: Not at all
              
              [default: auto]

    How many bits each module gets:
          --target-bpw <BITS>
              Give out bits so that all weights take this many on average, those that matter more

          --target-size <SIZE>
              Give out bits so that the files with weights take this much, such as 96GiB or 13607051

          --fit <MEMORY>
              Give out bits so that the model runs on a Mac of this memory, such as 64GiB: three
              quarters of it, two thirds up to 36 GiB, less the context

          --context <TOKENS>
              Tokens of context that `--fit` leaves room for [default: 16384]

          --level <LEVEL>
              Give out the bits of an oMLX level: oq2, oq2.5, oq2.7, oq3, oq3.5, oq4, oq5, oq6 or oq8;
              with an `e` behind it for one with `--imatrix`

          --formats <LIST>
              Formats to choose from, where a runtime has not all or some are slow: BITS/GROUP with
              commas between them, such as 4/64,8/64 [default: 2 to 6 and 8 bits in groups of 64 or 128]

          --sensitivity-map <FILE>
              Scores of layers, as oMLX writes them into `oq_sensitivity_map.json`: layers of higher
              scores get more bits

          --measures <FILE>
              File of measured errors, which is written, and read for another target [default: the
              checkpoint's name with .measures.json, beside the output]

          --recipe <NAME|FILE>
              Use one of mlx-lm's mixed recipes, module for module (`mixed_2_6`, `mixed_3_4`,
              `mixed_3_6` or `mixed_4_6`), or a recipe file: a budget and rules for modules, in TOML
              (docs/bits.md describes it)

          --like <DIR>
              Store each module as a model has it that MLX quantized already, written by smelt or by
              another tool

    How names and shapes are mapped:
          --family <FILE>
              Use this family file instead of the ones inside smelt, for an architecture of your own

          --target <TARGET>
              Library that is to load the result [default: mlx-vlm for a checkpoint with vision or
              audio, mlx-lm for others]

              Possible values:
              - mlx-lm:  Language models
              - mlx-vlm: Models that see or hear

          --text-only
              Leave out what sees or hears: the same as `--target mlx-lm`

          --mtp <MTP>
              Layers that predict further tokens (MTP): `drop` leaves them out as the libraries do,
              `separate` writes them at 8 bits into the folder `mtp`, which the libraries do not load
              with the model

              Possible values:
              - drop:     They are left out
              - separate: They are written beside the model
              
              [default: drop]

          --python <PATH>
              Python that has mlx-lm or mlx-vlm installed, for `--discover`
              
              [default: python3]

          --layout <FILE>
              Use a layout that `smelt discover` wrote for this checkpoint

          --discover
              Ask the installed library for the layout, for an architecture that smelt has no family for

    Resources:
          --max-memory <SIZE>
              Memory for the whole process, such as 64MiB or 4G: more lets more blocks be on their way
              at once [default: 1GiB or a quarter of what is free, whichever is less]

          --threads <N>
              Threads that compute; the result does not depend on it [default: one for each core]

    Example: smelt quantize Qwen3-30B-A3B --bits 4 --override 'lm_head=6'
    ");
}

#[test]
fn nothing_asked() {
    let place = Place::new();
    assert_snapshot!(place.run(""), @"
    exit 1
    --- stderr
    Turn a Hugging Face checkpoint into a quantized MLX model, in bounded memory

    Usage: smelt <COMMAND>

    Commands:
      quantize  Write a quantized model
      plan      Show what `quantize` would write; only a target of size or bits reads weights
      inspect   Say what a checkpoint is, and what would be in the way
      verify    Check a finished model: as the loaders see it, byte for byte, and against its source
      diff      Compare two models or checkpoints tensor by tensor
      report    Draw the report of a finished model as a page
      discover  Ask the installed mlx-lm or mlx-vlm how it lays a checkpoint out, without reading a
                weight
      families  List the model families that smelt knows
      recipes   List mlx-lm's recipes and oMLX's levels with their bits
      help      Print this message or the help of the given subcommand(s)

    Options:
      -h, --help     Print help
      -V, --version  Print version
    ");
}

#[test]
fn plan() {
    let place = Place::new();
    let args = format!("{} --threads 2 --max-memory 1GiB", sample());
    assert_snapshot!(place.run(&format!("plan {args}")), @"
    exit 0
    --- stdout
    role              parameters   bits      size    share  stored as
    embedding             1.05 M   4.50   576 KiB   37.0 %  1 × 4-bit g64
    attention-query       65.5 K   4.50  36.0 KiB    2.3 %  4 × 4-bit g64
    attention-key         32.8 K   4.50  18.0 KiB    1.2 %  4 × 4-bit g64
    attention-value       32.8 K   4.50  18.0 KiB    1.2 %  4 × 4-bit g64
    attention-output      65.5 K   4.50  36.0 KiB    2.3 %  4 × 4-bit g64
    router                4.10 K   8.50  4.25 KiB    0.3 %  4 × 8-bit g64
    expert-gate            524 K   4.50   288 KiB   18.5 %  4 × 4-bit g64
    expert-up              524 K   4.50   288 KiB   18.5 %  4 × 4-bit g64
    expert-down            524 K   4.50   288 KiB   18.5 %  4 × 4-bit g64
    norm                  1.41 K  16.00  2.75 KiB    0.2 %  17 × bf16
    total                 2.82 M   4.51  1.52 MiB  100.0 %

    bits per weight  4.512
    codes            by search
    files            1 shard of 1.53 MiB in all, 4 side files
    left out         no tensor
    peak memory      at most 34.8 MiB
    disk             2.05 MiB needed, [space] free
    ");
    // A dry run shows the same.
    assert_eq!(place.run(&format!("quantize {args} -o out --dry-run")), place.run(&format!("plan {args}")));
    assert!(!place.path("out").exists());
    let plan = json(&place, &format!("plan {args} --json"));
    assert_eq!(plan["family"], "qwen3_moe");
    assert_eq!(plan["format"]["bits"], 4);
    assert!(plan["tasks"].as_array().unwrap().len() > 20);
    let dry = json(&place, &format!("quantize {args} -o out --dry-run --json"));
    assert_eq!((&dry["type"], &dry["data"]), (&Value::from("plan"), &plan));
}

#[test]
fn inspect() {
    let place = Place::with("llama", |_| {});
    assert_snapshot!(place.run("inspect model"), @"
    exit 0
    --- stdout
    model type  llama
    family      llama
    parameters  722 K
    weights     1.38 MiB in 39 tensors, 1 shard
    stored as   plain floats: BF16 1.38 MiB
    tokenizer   tokenizer.json
    side files  none
    in the way  nothing
    ");
    let sample = json(&place, &format!("inspect {} --json", sample()));
    assert_eq!(sample["model_type"], "qwen3_moe");
    assert!(sample["active_parameters"].as_u64().unwrap() < sample["parameters"].as_u64().unwrap());
    assert_eq!(sample["in_the_way"], Value::Null);
    let place = Place::with("llama", |model| model.config["quantization"] = serde_json::json!({"bits": 4}));
    assert_snapshot!(place.run("inspect model"), @"
    exit 0
    --- stdout
    model type  llama
    family      none that fits
    parameters  unknown
    weights     1.38 MiB in 39 tensors, 1 shard
    stored as   already quantized by MLX (affine, 4 bits): BF16 1.38 MiB
    tokenizer   tokenizer.json
    side files  none
    in the way  the weights are already quantized by MLX (affine, 4 bits); quantizing them again loses more: take the original checkpoint, or give `--allow-requantize`
    ");
}

#[test]
fn families() {
    let place = Place::new();
    let table = place.run("families");
    assert!(table.starts_with("exit 0\n--- stdout\nfamily"), "{table}");
    let list = json(&place, "families --json");
    for family in list.as_array().unwrap() {
        let name = family["name"].as_str().unwrap();
        assert!(table.contains(name) && !family["model_types"].as_array().unwrap().is_empty(), "{family}");
        assert!(place.output(&format!("families show {name}")).status.success());
    }
    assert_snapshot!(place.run("families show nothing"), @"
    exit 1
    --- stderr
    error: smelt has no family `nothing`
    ");
}

#[test]
fn recipes() {
    let place = Place::new();
    assert_snapshot!(place.run("recipes"), @"
    exit 0
    --- stdout
    option                         bits  who gets them
    --recipe mixed_2_6          2 and 6  the high width for the head, and for values and down projections of some layers
    --recipe mixed_3_4          3 and 4  the high width for the head, and for values and down projections of some layers
    --recipe mixed_3_6          3 and 6  the high width for the head, and for values and down projections of some layers
    --recipe mixed_4_6          4 and 6  the high width for the head, and for values and down projections of some layers
    --level oq2         3.00 on average  the least predicted loss
    --level oq2.5       3.30 on average  the least predicted loss
    --level oq2.7       3.35 on average  the least predicted loss
    --level oq3         3.70 on average  the least predicted loss
    --level oq3.5       4.00 on average  the least predicted loss
    --level oq4         4.70 on average  the least predicted loss
    --level oq5         5.70 on average  the least predicted loss
    --level oq6         6.70 on average  the least predicted loss
    --level oq8                       8  every module
    ");
    let listed = json(&place, "recipes --json");
    assert_eq!(
        (&listed["recipes"][0]["bits"][1], &listed["levels"][3]["bits_per_weight"]),
        (&6.into(), &3.7.into())
    );
}
