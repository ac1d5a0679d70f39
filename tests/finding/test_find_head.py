"""The head is found from shapes and generic words, or the error says why not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rescale_cli.errors import AmbiguousHead, BadHead, BadInput, NoClassifier
from rescale_cli.files.contents import TensorInfo, row_major
from rescale_cli.finding.find_head import FoundHeads, find_heads
from rescale_cli.finding.names import opinion


def info(name: str, *shape: int, dtype: str = "float32") -> TensorInfo:
    return TensorInfo(name, shape, row_major(shape), dtype, Path("x"), 0, 0)


def infos(model: nn.Module, prefix: str = "") -> list[TensorInfo]:
    """What a format would list of the model, in alphabetical order, which tells nothing."""
    return [
        info(prefix + name, *tensor.shape, dtype=str(tensor.dtype).removeprefix("torch."))
        for name, tensor in sorted(model.state_dict().items())
    ]


def backbone(prefix: str = "", depth: int = 4, width: int = 64) -> list[TensorInfo]:
    found = [info(f"{prefix}stem.weight", width, 3, 7, 7)]
    for i in range(depth):
        block = f"{prefix}blocks.{i}."
        found += [
            info(f"{block}norm.weight", width),
            info(f"{block}fc1.weight", 4 * width, width),
            info(f"{block}fc1.bias", 4 * width),
            info(f"{block}fc2.weight", width, 4 * width),
            info(f"{block}fc2.bias", width),
        ]
    return found


def head(name: str, rows: int = 10, width: int = 64) -> list[TensorInfo]:
    return [info(f"{name}.weight", rows, width), info(f"{name}.bias", rows)]


def weights(found: FoundHeads) -> list[str]:
    return [h.weight for h in found.heads]


TORCHVISION = [
    ("resnet18", "fc"), ("vgg11", "classifier.6"), ("alexnet", "classifier.6"),
    ("squeezenet1_1", "classifier.1"), ("densenet121", "classifier"), ("googlenet", "fc"),
    ("inception_v3", "fc"), ("mobilenet_v3_small", "classifier.3"), ("swin_t", "head"),
    ("convnext_tiny", "classifier.2"), ("vit_b_32", "heads.head"), ("shufflenet_v2_x0_5", "fc"),
]  # fmt: skip
TIMM = [
    ("resnetv2_50", "head.fc"), ("convnext_atto", "head.fc"), ("mixer_s32_224", "head"),
    ("efficientvit_b0", "head.classifier.4"), ("dla34", "fc"), ("dpn68", "classifier"),
    ("visformer_tiny", "head"), ("nfnet_f0", "head.fc"), ("edgenext_xx_small", "head.fc"),
    ("gcvit_xxtiny", "head.fc"), ("coat_tiny", "head"), ("poolformer_s12", "head.fc"),
]  # fmt: skip
TRANSFORMERS = [
    ("Bert", "classifier"), ("Roberta", "classifier.out_proj"), ("GPT2", "score"),
    ("DistilBert", "classifier"), ("Electra", "classifier.out_proj"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "module"), TORCHVISION)
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_the_head_of_a_torchvision_model_is_found(name: str, module: str, classes: int) -> None:
    torchvision = pytest.importorskip("torchvision")
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("meta"):
        model = torchvision.models.get_model(name, num_classes=classes, **options)
    found = find_heads(infos(model))
    assert weights(found) == [f"{module}.weight"]
    assert found.heads[0].bias == f"{module}.bias"
    assert found.heads[0].num_classes == classes


@pytest.mark.parametrize(("name", "module"), TIMM)
def test_the_head_of_a_timm_model_is_found(name: str, module: str) -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=37)
    found = find_heads(infos(model))
    assert weights(found) == [f"{module}.weight"]
    assert found.heads[0].num_classes == 37


@pytest.mark.parametrize(("name", "module"), TRANSFORMERS)
def test_the_head_of_a_transformers_model_is_found(name: str, module: str) -> None:
    transformers = pytest.importorskip("transformers")
    try:
        classifier = getattr(transformers, f"{name}ForSequenceClassification")
    except (ImportError, RuntimeError) as error:  # transformers imports what it finds, lazily
        pytest.skip(f"transformers cannot import {name} here: {error}")
    sizes = {"num_hidden_layers": 2} if name != "DistilBert" else {"n_layers": 2}
    config = getattr(transformers, f"{name}Config")(**sizes)
    config.num_labels = 5
    with torch.device("meta"):
        model = classifier(config)
        bare = getattr(transformers, f"{name}Model")(config)
    assert weights(find_heads(infos(model))) == [f"{module}.weight"]
    with pytest.raises((NoClassifier, AmbiguousHead)):
        find_heads(infos(bare))
    with pytest.raises(NoClassifier, match="feature extractor"):
        find_heads(infos(bare), config={"architectures": [f"{name}Model"]})


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "resnet18", "mixer_s32_224", "efficientnet_b0", "ghostnet_100"]
)
def test_a_model_without_a_head_is_refused(name: str) -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    with pytest.raises((NoClassifier, AmbiguousHead)):
        find_heads(infos(model))


def test_both_heads_of_a_distilled_model_are_found_the_labelled_one_first() -> None:
    found = find_heads(backbone() + head("head_dist") + head("head"))
    assert weights(found) == ["head.weight", "head_dist.weight"]


def test_the_heads_on_two_tokens_are_both_final() -> None:
    found = find_heads(backbone() + head("distillation_classifier") + head("cls_classifier"))
    assert weights(found) == ["cls_classifier.weight", "distillation_classifier.weight"]


def test_every_copy_of_the_head_is_found_the_raw_one_first() -> None:
    ema = backbone("state_dict_ema.") + head("state_dict_ema.fc")
    raw = backbone("state_dict.module.") + head("state_dict.module.fc")
    found = find_heads(ema + raw)
    assert weights(found) == ["state_dict.module.fc.weight", "state_dict_ema.fc.weight"]
    assert found.heads[1].bias == "state_dict_ema.fc.bias"
    assert "2 copies" in found.warnings[0]


@pytest.mark.parametrize("names", [("rgb", "flow"), ("net1", "net2"), ("model_a", "model_b")])
def test_two_networks_that_the_model_may_combine_are_ambiguous(
    names: tuple[str, str],
) -> None:
    tensors = [t for name in names for t in backbone(f"{name}.") + head(f"{name}.fc")]
    first, second = (f"{name}.fc.weight" for name in names)
    for named in ((), (first,)):
        with pytest.raises(AmbiguousHead) as caught:
            find_heads(tensors, names=named)
        assert f"--head {first} --head {second}" in caught.value.fix
    assert weights(find_heads(tensors, names=[first], only=True)) == [first]
    both = find_heads(tensors, names=[first, second])
    assert [head.is_copy for head in both.heads] == [False, False]


@pytest.mark.parametrize("other", ["best", "best_model", "ema", "teacher", "state_dict"])
def test_a_branch_named_as_a_version_of_the_model_is_a_copy(other: str) -> None:
    tensors = [t for name in ("model", other) for t in backbone(f"{name}.") + head(f"{name}.fc")]
    found = find_heads(tensors)
    assert weights(found) == ["model.fc.weight", f"{other}.fc.weight"]
    assert [head.is_copy for head in found.heads] == [False, True]


def test_an_optimizer_state_of_the_same_shape_is_not_a_head() -> None:
    state = [info("optimizer.state.60.exp_avg", 10, 64), info("optimizer.state.61.exp_avg", 10)]
    metrics = [info("val_confmat.confmat", 10, 10, dtype="int64"), info("criterion.weight", 10)]
    found = find_heads(backbone("state_dict.") + head("state_dict.fc") + state + metrics)
    assert weights(found) == ["state_dict.fc.weight"]


def test_an_auxiliary_head_is_listed_but_not_chosen() -> None:
    aux = [info("aux1.conv.weight", 32, 64, 1, 1), *head("aux1.fc1", 99), *head("aux1.fc2", 10, 99)]
    found = find_heads(backbone() + head("fc") + aux)
    assert weights(found) == ["fc.weight"]
    assert any(c.weight == "aux1.fc2.weight" and "auxiliary" in c.why for c in found.candidates)


def test_the_untrained_copy_of_an_adapter_file_is_not_the_head() -> None:
    peft = "base_model.model.classifier."
    tensors = backbone("base_model.model.")
    tensors += head(f"{peft}original_module") + head(f"{peft}modules_to_save.default")
    assert weights(find_heads(tensors)) == [f"{peft}modules_to_save.default.weight"]


def test_a_layer_before_the_logits_is_not_the_head() -> None:
    found = find_heads(backbone() + head("pre_classifier", 64) + head("classifier", 64))
    assert weights(found) == ["classifier.weight"]
    found = find_heads(backbone() + head("classifier.dense", 64) + head("classifier.out_proj", 64))
    assert weights(found) == ["classifier.out_proj.weight"]


def test_the_class_count_decides_between_two_heads() -> None:
    tensors = backbone() + head("head_a", 10) + head("head_b", 7)
    with pytest.raises(AmbiguousHead) as caught:
        find_heads(tensors)
    assert {c["weight"] for c in caught.value.candidates} == {"head_a.weight", "head_b.weight"}
    assert "--head head_" in caught.value.fix
    assert weights(find_heads(tensors, num_classes=7)) == ["head_b.weight"]
    assert weights(find_heads(tensors, config={"id2label": dict.fromkeys("abcdefg")})) == [
        "head_b.weight"
    ]


@pytest.mark.parametrize("classes", [11, 64, 256])
def test_a_wrong_class_count_is_refused_with_the_rows_of_the_head(classes: int) -> None:
    with pytest.raises(BadInput, match=f"has {classes} rows") as caught:
        find_heads(backbone() + head("fc"), num_classes=classes)
    assert "fc.weight (10, 64)" in caught.value.saw


@pytest.mark.parametrize("name", ["fc", "fc.weight", "net.fc", "net.fc.weight"])
def test_a_head_can_be_named_by_tensor_module_or_end(name: str) -> None:
    found = find_heads(backbone("net.") + head("net.fc"), names=[name])
    assert weights(found) == ["net.fc.weight"]


def test_several_names_give_several_heads_in_that_order() -> None:
    tensors = backbone() + head("a") + head("b", 7)
    assert weights(find_heads(tensors, names=["b", "a"])) == ["b.weight", "a.weight"]


def test_an_unknown_name_lists_close_ones() -> None:
    with pytest.raises(BadInput, match="named heda") as caught:
        find_heads(backbone() + head("head"), names=["heda"])
    assert "head" in caught.value.saw


@pytest.mark.parametrize("told", [None, 5])
def test_the_error_for_a_file_without_a_matrix_says_so(told: int | None) -> None:
    for tensors in ([], [info("a", 3), info("b", 5)]):
        with pytest.raises(NoClassifier, match="no final linear layer") as caught:
            find_heads(tensors, num_classes=told)
        assert caught.value.saw == f"{len(tensors)} tensors, and none of them is a matrix"


def test_the_end_of_several_names_is_ambiguous() -> None:
    with pytest.raises(AmbiguousHead):
        find_heads(backbone() + head("a.fc") + head("b.fc"), names=["fc"])


def test_a_named_layer_with_other_rows_than_classes_is_refused() -> None:
    with pytest.raises(BadInput, match="has 10 rows"):
        find_heads(backbone() + head("fc"), names=["fc"], num_classes=11)


def test_the_weight_of_a_weight_norm_head_is_g() -> None:
    for g, v in (
        ("fc.weight_g", "fc.weight_v"),
        ("fc.parametrizations.weight.original0", "fc.parametrizations.weight.original1"),
    ):
        found = find_heads([*backbone(), info(g, 10, 1), info(v, 10, 64), info("fc.bias", 10)])
        keys = found.heads[0]
        assert (keys.weight, keys.direction, keys.layout) == (g, v, "weight_norm")
        assert (keys.num_classes, keys.feature_dim, keys.bias) == (10, 64, "fc.bias")


def test_a_one_by_one_convolution_is_a_head() -> None:
    conv = [info("classifier.1.weight", 10, 64, 1, 1), info("classifier.1.bias", 10)]
    assert find_heads(backbone() + conv).heads[0].layout == "conv1x1"


def test_a_transposed_head_is_clear_with_a_bias_and_doubtful_without_one() -> None:
    stored = [info("fc.weight", 64, 10), info("fc.bias", 10)]
    keys = find_heads(backbone() + stored).heads[0]
    assert (keys.layout, keys.num_classes, keys.feature_dim) == ("transposed", 10, 64)
    found = find_heads([*backbone(), info("linear.weight", 64, 10)])
    assert found.heads[0].layout == "transposed"
    assert keys.no_effect is None
    assert "stored as (D, C) without a bias" in str(found.heads[0].no_effect)


def test_a_transposed_view_is_an_ordinary_linear_layer() -> None:
    view = TensorInfo("fc.weight", (10, 64), (1, 10), "float32", Path("x"), 0, 0)
    assert find_heads([*backbone(), view, info("fc.bias", 10)]).heads[0].layout == "linear"


@pytest.mark.parametrize("sign", ["sigma", "scale", "logit_scale"])
def test_a_scale_beside_the_weight_is_a_sign_of_a_cosine_head(sign: str) -> None:
    found = find_heads([*backbone(), info("fc.weight", 10, 64), info(f"fc.{sign}", 1)])
    assert f"fc.{sign}" in str(found.heads[0].no_effect)


def test_a_quantized_head_is_refused_with_the_reason() -> None:
    int8 = [info("fc.weight", 10, 64, dtype="int8"), info("fc.bias", 10), info("fc.SCB", 10)]
    with pytest.raises(BadHead, match="quantized"):
        find_heads(backbone() + int8)
    packed = [info("fc.qweight", 8, 10, dtype="int32"), info("fc.scales", 10)]
    with pytest.raises(NoClassifier) as caught:
        find_heads(backbone() + packed)
    assert "quantized" in caught.value.saw


def test_the_task_in_config_json_decides() -> None:
    tensors = backbone() + head("classifier")
    with pytest.raises(NoClassifier, match="regression"):
        find_heads(tensors, config={"problem_type": "regression"})
    with pytest.raises(NoClassifier, match="vocabulary"):
        find_heads(tensors, config={"architectures": ["ThingForCausalLM"]})
    found = find_heads(tensors, config={"problem_type": "multi_label_classification"})
    assert "multi-label" in found.warnings[0]


@pytest.mark.parametrize(
    "config",
    [
        {"problem_type": "regression"},
        {"architectures": ["ViTModel"]},
        {"num_classes": 0, "pretrained_cfg": {}},
    ],
)
def test_a_model_that_is_not_a_classifier_is_refused_with_any_class_count(
    config: dict[str, object],
) -> None:
    tensors = backbone() + head("classifier")
    for told in (None, 10, 64):
        with pytest.raises(NoClassifier):
            find_heads(tensors, config=config, num_classes=told)
    assert weights(find_heads(tensors, config=config, names=["classifier"]))


def test_a_multi_label_model_causes_a_warning_with_any_class_count() -> None:
    tensors = backbone() + head("classifier")
    multi = {"problem_type": "multi_label_classification"}
    assert "multi-label" in find_heads(tensors, config=multi, num_classes=10).warnings[0]


def test_the_reason_is_in_words() -> None:
    why = find_heads(backbone() + head("fc")).heads[0].why
    assert why == "no other tensor has a dimension of 10; a bias of the same length; named fc"


def test_only_names_of_final_layers_get_positive_points() -> None:
    for path in (("fc",), ("head", "fc"), ("classifier", "6"), ("box_predictor", "cls_score")):
        assert opinion(path).points > 0, path
    for path in (("mlp", "fc2"), ("attn", "proj"), ("pooler", "dense"), ("embed_tokens",)):
        assert opinion(path).points <= 0, path


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(5, 300), min_size=2, max_size=6),
    st.integers(2, 300),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_shapes_alone_find_the_head_or_raise_an_error(widths, classes, convolutional, random):
    """Layer names are random letters; only the chain of widths tells which one is the last."""
    names = random.sample([a + b for a in "uvwxyz" for b in "uvwxyz"], len(widths))
    tensors = []
    for name, inner, outer in zip(names, widths, [*widths[1:], classes], strict=True):
        kernel = (3, 3) if convolutional and name != names[-1] else ()
        tensors += [info(f"{name}.weight", outer, inner, *kernel), info(f"{name}.bias", outer)]
    random.shuffle(tensors)
    try:
        found = find_heads(tensors)
    except (AmbiguousHead, NoClassifier):
        assert classes in widths or len({*widths, classes}) <= len(widths)
    else:
        assert weights(found) == [f"{names[-1]}.weight"] or classes in widths


def test_the_stored_copy_of_a_normed_weight_is_not_a_second_head() -> None:
    normed = [info("fc.weight_g", 10, 1), info("fc.weight_v", 10, 64), info("fc.weight", 10, 64)]
    found = find_heads([*backbone(), *normed, info("fc.bias", 10)])
    assert weights(found) == ["fc.weight_g"]
    assert found.heads[0].layout == "weight_norm"


def test_a_weight_norm_that_is_not_by_rows_is_not_a_head() -> None:
    normed = [info("fc.weight_g", 1, 64), info("fc.weight_v", 10, 64), info("fc.bias", 10)]
    with pytest.raises(NoClassifier):
        find_heads([*backbone(), *normed])


@pytest.mark.parametrize("leaf", ["kernel", "weight_orig"])
def test_a_weight_by_another_name_has_its_bias(leaf: str) -> None:
    shape = (64, 10) if leaf == "kernel" else (10, 64)
    found = find_heads([*backbone(), info(f"fc.{leaf}", *shape), info("fc.bias", 10)])
    assert weights(found) == [f"fc.{leaf}"]
    assert found.heads[0].bias == "fc.bias"
    assert (found.heads[0].num_classes, found.heads[0].feature_dim) == (10, 64)


def test_a_head_under_spectral_norm_is_refused() -> None:
    normed = [info("fc.weight_orig", 10, 64), info("fc.weight_u", 10), info("fc.weight_v", 64)]
    with pytest.raises(BadHead, match="spectral norm"):
        find_heads([*backbone(), *normed, info("fc.bias", 10)])


def test_a_named_layer_whose_weight_is_computed_is_refused_by_its_name() -> None:
    computed = [info("fc.parametrizations.weight.original", 10, 64), info("fc.bias", 10)]
    with pytest.raises(BadHead, match="weight of fc is computed"):
        find_heads([*backbone(), *computed], names=["fc"])


def test_an_inner_layer_is_not_chosen_if_the_last_layer_is_not_a_matrix() -> None:
    with pytest.raises(NoClassifier, match="is not linear"):
        find_heads([
            *(info(f"conv_layers.{i}.weight", 40, 40, 3) for i in range(3)),
            info("conv_layers.9.weight", 3, 40, 1), info("conv_layers.9.bias", 3),
            info("fc.weight", 1, 1, 1175),
        ])  # fmt: skip


def test_a_head_with_the_shape_of_a_token_table_is_ambiguous() -> None:
    model = [info("decoder.tok_embedding.weight", 137, 64), *head("decoder.fc_out", 137)]
    with pytest.raises(AmbiguousHead):
        find_heads([*backbone(), *model])
    found = find_heads([*backbone(), *model], num_classes=137)
    assert weights(found) == ["decoder.fc_out.weight"]


@pytest.mark.parametrize("rows", [1, 5])
def test_only_warns_of_the_final_layers_that_it_leaves_out(rows: int) -> None:
    tensors = backbone() + head("heads.0", rows) + head("heads.1", rows)
    found = find_heads(tensors, names=["heads.0"], only=True)
    assert [h.weight for h in found.heads] == ["heads.0.weight"]
    assert any("heads.1.weight" in warning for warning in found.warnings)
