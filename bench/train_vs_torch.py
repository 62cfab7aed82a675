"""The architecture of a recipe in eager PyTorch: what bench/train_vs_torch.sh holds fathom against.

Written for PyTorch 1.13 (Debian's): bf16 autocast, batched masked attention, experts in a loop over
gathered tokens, Muon for matrices (Newton-Schulz in bf16, same shapes batched) and AdamW for the
rest. Begins with the weights and the rows that `fathom bench train-steps --export` wrote, so that
the first loss must agree.
"""
import argparse
import json
import math
import re
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

DTYPES = {"F32": np.float32, "I32": np.int32, "I64": np.int64}
LOSS_TOLERANCE = 5e-3  # nats; bf16 rounds at other places in the two programs


def read_safetensors(path):
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = file.read()
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        array = np.frombuffer(data[begin:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
        tensors[name] = torch.from_numpy(array.copy())
    return tensors


class Weights:
    """The checkpoint's tensors as parameters, by their names below a prefix."""

    def __init__(self, tensors, prefix=""):
        self.tensors, self.prefix = tensors, prefix

    def __getitem__(self, name):
        return self.tensors[self.prefix + name]

    def under(self, name):
        return Weights(self.tensors, self.prefix + name + ".")

    def linear(self, name, x):
        return F.linear(x, self[name + ".weight"])


def rms_norm(x, weight, eps):
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def rope(x, cos, sin):
    """Interleaved pairs; x [B, T, heads, R], cos and sin [B, T, 1, R / 2]."""
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


def attention(w, c, x, cos, sin, mask):
    rows, length, _ = x.shape
    heads, nope, rotary, v_dim = (c["num_attention_heads"], c["qk_nope_head_dim"],
                                  c["qk_rope_head_dim"], c["v_head_dim"])
    eps = c.get("rms_norm_eps", 1e-6)
    q_latent = rms_norm(w.linear("q_a_proj", x), w["q_a_layernorm.weight"], eps)
    q = w.linear("q_b_proj", q_latent).view(rows, length, heads, nope + rotary)
    q = torch.cat((q[..., :nope], rope(q[..., nope:], cos, sin).to(q.dtype)), -1)
    kv = w.linear("kv_a_proj_with_mqa", x)
    latent = rms_norm(kv[..., :c["kv_lora_rank"]], w["kv_a_layernorm.weight"], eps)
    k_rope = rope(kv[..., c["kv_lora_rank"]:].unsqueeze(2), cos, sin)
    kv = w.linear("kv_b_proj", latent).view(rows, length, heads, nope + v_dim)
    k = torch.cat((kv[..., :nope], k_rope.to(kv.dtype).expand(-1, -1, heads, -1)), -1)
    q, k, v = (t.transpose(1, 2) for t in (q, k, kv[..., nope:]))
    scores = q @ k.transpose(-1, -2) * (nope + rotary) ** -0.5 + mask
    out = (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2).reshape(rows, length, heads * v_dim)
    return w.linear("o_proj", out)


def mlp(w, x):
    return w.linear("down_proj", F.silu(w.linear("gate_proj", x)) * w.linear("up_proj", x))


def route(w, c, x):
    """Experts [N, K] and their weights; sigmoid scores, a biased choice within the best groups."""
    with torch.cpu.amp.autocast(enabled=False):
        scores = torch.sigmoid(F.linear(x.float(), w["gate.weight"]))
    with torch.no_grad():
        biased = scores + w["gate.e_score_correction_bias"]
        groups, kept = c.get("n_group", 1), c.get("topk_group", 1)
        if kept < groups:
            by_group = biased.view(len(x), groups, -1)
            best = by_group.topk(2, -1).values.sum(-1).topk(kept, -1).indices
            allowed = torch.zeros(len(x), groups).scatter_(1, best, 1).unsqueeze(-1) > 0
            biased = by_group.masked_fill(~allowed, -math.inf).flatten(1)
        index = biased.topk(c["num_experts_per_tok"], -1).indices
    chosen = scores.gather(1, index)
    if c.get("norm_topk_prob", True):
        chosen = chosen / chosen.sum(1, keepdim=True)
    counts = torch.bincount(index.flatten(), minlength=c["n_routed_experts"])
    share = counts / index.numel()
    balance = (share * (scores / scores.sum(1, keepdim=True)).mean(0)).sum() * len(share)
    return index, chosen * c.get("routed_scaling_factor", 1.0), counts, balance


def moe(w, c, x, statistics_of):
    flat = x.reshape(-1, x.shape[-1])
    index, weight, counts, balance = route(w, c, flat)
    statistics_of.append((w["gate.e_score_correction_bias"], counts, balance))
    out = torch.zeros_like(flat)
    for e in range(c["n_routed_experts"]):
        token, slot = (index == e).nonzero(as_tuple=True)
        if len(token):
            y = mlp(w.under(f"experts.{e}"), flat[token])
            out = out.index_add(0, token, (y * weight[token, slot].unsqueeze(1)).to(out.dtype))
    return (out + mlp(w.under("shared_experts"), flat)).view_as(x)


def layer(w, c, x, is_moe, cos_sin_mask, statistics_of):
    eps = c.get("rms_norm_eps", 1e-6)
    x = x + attention(w.under("self_attn"), c, rms_norm(x, w["input_layernorm.weight"], eps),
                      *cos_sin_mask)
    normed = rms_norm(x, w["post_attention_layernorm.weight"], eps)
    return x + (moe(w.under("mlp"), c, normed, statistics_of) if is_moe else
                mlp(w.under("mlp"), normed))


def documents_of(tokens, bos, document_masking):
    """Number of the document that each token belongs to, and its position there: [B, T] each."""
    begins = (tokens == bos) if document_masking else torch.zeros_like(tokens, dtype=torch.bool)
    begins[:, 0] = True
    place = torch.arange(tokens.shape[1]).expand_as(tokens)
    first = torch.where(begins, place, torch.zeros_like(place)).cummax(1).values
    return begins.cumsum(1), place - first


def cos_sin_mask_of(c, document, position):
    rotary = c["qk_rope_head_dim"]
    frequency = c.get("rope_theta", 10000.0) ** (-torch.arange(0, rotary, 2) / rotary)
    angle = position.unsqueeze(-1) * frequency
    length = document.shape[1]
    visible = (document.unsqueeze(2) == document.unsqueeze(1)) & torch.ones(
        length, length, dtype=torch.bool).tril()
    mask = torch.zeros(visible.shape).masked_fill(~visible, -math.inf).unsqueeze(1)
    return angle.cos().unsqueeze(2), angle.sin().unsqueeze(2), mask


def losses_of(w, c, training, batch):
    """Total, cross-entropy and MTP's cross-entropy of rows [B, T + 1]."""
    tokens, targets = batch[:, :-1], batch[:, 1:].clone()
    document, position = documents_of(tokens, c.get("bos_token_id", 0),
                                      training["document_masking"])
    if training["document_masking"]:
        targets[targets == c.get("bos_token_id", 0)] = -1
    eps, routed = c.get("rms_norm_eps", 1e-6), []
    shared = cos_sin_mask_of(c, document, position)
    embedding, head = w["model.embed_tokens.weight"], w["lm_head.weight"]

    def cross_entropy(hidden, wanted):
        return F.cross_entropy(F.linear(hidden, head).float().flatten(0, 1), wanted.flatten(),
                               ignore_index=-1)

    x = F.embedding(tokens, embedding)
    for i in range(c["num_hidden_layers"]):
        is_moe = i >= c["first_k_dense_replace"]
        x = layer(w.under(f"model.layers.{i}"), c, x, is_moe, shared, routed)
    hidden = rms_norm(x, w["model.norm.weight"], eps)
    main, mtp = cross_entropy(hidden, targets), torch.zeros(())
    if c["num_nextn_predict_layers"] and training["mtp_weight"] > 0:
        m = w.under(f"model.layers.{c['num_hidden_layers']}")
        following = F.embedding(targets.clamp_min(0), embedding)
        joined = torch.cat((rms_norm(following, m["enorm.weight"], eps),
                            rms_norm(hidden, m["hnorm.weight"], eps)), -1)
        x = layer(m, c, m.linear("eh_proj", joined), True, shared, routed)
        after_next = torch.full_like(targets, -1)
        after_next[:, :-1] = torch.where(
            (document[:, :-1] == document[:, 1:]) & (targets[:, :-1] >= 0), targets[:, 1:], -1)
        mtp = cross_entropy(rms_norm(x, m["shared_head.norm.weight"], eps), after_next)
    total = main + training["mtp_weight"] * mtp
    if routed:
        total = total + training["balance_weight"] * torch.stack([b for *_, b in routed]).mean()
    return total, main, mtp, routed


@torch.no_grad()
def balance_experts(routed, rate):
    for bias, counts, _ in routed:
        load = counts.float()
        bias += rate * (load.mean() - load).sign()
        bias -= bias.mean()


def is_matrix(name, tensor):
    """What Muon takes: not embeddings, head, routers, norms."""
    return tensor.dim() == 2 and not re.search(
        r"embed_tokens|lm_head|mlp\.gate\.|weights_proj", name)


class Muon:
    def __init__(self, parameters, learning_rate, momentum, weight_decay):
        self.learning_rate, self.momentum, self.decay = learning_rate, momentum, weight_decay
        by_shape = {}
        for p in parameters:
            by_shape.setdefault(tuple(p.shape), []).append(p)
        self.groups = [(group, torch.zeros(len(group), *shape))
                       for shape, group in by_shape.items()]

    @torch.no_grad()
    def step(self):
        for group, moment in self.groups:
            gradient = torch.stack([p.grad for p in group])
            moment.lerp_(gradient, 1 - self.momentum)
            x = gradient.lerp(moment, self.momentum).bfloat16()
            is_tall = x.shape[1] > x.shape[2]
            x = x.transpose(1, 2) if is_tall else x
            x = x / (x.float().norm(dim=(1, 2), keepdim=True).to(x.dtype) + 1e-7)
            for _ in range(5):
                a = x @ x.transpose(1, 2)
                x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
            x = (x.transpose(1, 2) if is_tall else x).float()
            size = 0.2 * math.sqrt(max(x.shape[1:]))
            for p, direction in zip(group, x):
                p.mul_(1 - self.learning_rate * self.decay)
                p.sub_(direction, alpha=self.learning_rate * size)


def optimizers_of(parameters, recipe):
    o = recipe["optimizer"]
    rate, decay = o["learning_rate"], o.get("weight_decay", 0.1)
    matrices = [p for name, p in parameters.items() if is_matrix(name, p)]
    others = [p for name, p in parameters.items() if not is_matrix(name, p)]
    adamw = {"lr": rate, "betas": (o.get("beta1", 0.9), o.get("beta2", 0.95)),
             "eps": o.get("epsilon", 1e-10), "foreach": True}
    rest = torch.optim.AdamW(others, weight_decay=0.0, **adamw)
    if o.get("matrices", "muon") == "adamw":
        return [torch.optim.AdamW(matrices, weight_decay=decay, **adamw), rest]
    return [Muon(matrices, rate, o.get("muon_momentum", 0.95), decay), rest]


class Peer:
    """The model, its optimizers and its batches, as the other program exported them."""

    def __init__(self, folder, recipe):
        self.config, self.recipe = recipe["model"], recipe
        self.training = {"document_masking": True, "mtp_weight": 0.3, "balance_weight": 1e-3,
                         "expert_bias_rate": 1e-3, "warmup_steps": 50, **recipe["training"]}
        tensors = {name: t for name, t in read_safetensors(
            f"{folder}/model/model.safetensors").items() if ".indexer." not in name}
        self.parameters = {name: t.requires_grad_() for name, t in tensors.items()
                           if not name.endswith("e_score_correction_bias")}
        self.weights = Weights(tensors)
        self.batches = read_safetensors(f"{folder}/batch.safetensors")["tokens"].long()
        self.optimizers = optimizers_of(self.parameters, recipe)

    def step(self, number):
        rate = self.recipe["optimizer"]["learning_rate"]
        rate *= min(1.0, (number + 1) / max(1, self.training["warmup_steps"]))
        with torch.cpu.amp.autocast(dtype=torch.bfloat16):
            total, main, mtp, routed = losses_of(self.weights, self.config, self.training,
                                                 self.batches[number])
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(),
                                       self.recipe["optimizer"].get("clip_norm", 1.0))
        for optimizer in self.optimizers:
            if isinstance(optimizer, Muon):
                optimizer.learning_rate = rate
            else:
                optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
        balance_experts(routed, self.training["expert_bias_rate"])
        for p in self.parameters.values():
            p.grad = None
        return main.item(), mtp.item()


def flops_per_step(peer):
    """Useful floating-point operations: 6 a weight and token, and attention within documents."""
    c, per_token = peer.config, 0.0
    for name, p in peer.parameters.items():
        if p.dim() != 2 or "embed_tokens" in name:
            continue
        share = c["num_experts_per_tok"] / c["n_routed_experts"] if ".experts." in name else 1
        heads = 2 if name.startswith("lm_head") and c["num_nextn_predict_layers"] else 1
        per_token += 6 * p.numel() * share * heads
    layers = c["num_hidden_layers"] + c["num_nextn_predict_layers"]
    per_pair = 6 * layers * c["num_attention_heads"] * (
        c["qk_nope_head_dim"] + c["qk_rope_head_dim"] + c["v_head_dim"])
    tokens = peer.batches[0][:, :-1]
    _, position = documents_of(tokens, c.get("bos_token_id", 0), peer.training["document_masking"])
    return per_token * tokens.numel() + per_pair * (position + 1).sum().item()


def bf16_peak(size=2048, repeats=5):
    """FLOP/s of the best large bf16 matmul."""
    a, b = (torch.randn(size, size).bfloat16() for _ in range(2))
    best = math.inf
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - begin)
    return 2 * size ** 3 / best


def timed_steps(peer, steps):
    """Medians of wall and CPU seconds of a step, the first left out."""
    seconds, cpu_seconds = [], []
    for number in range(steps):
        begin, cpu = time.perf_counter(), time.process_time()
        peer.step(number)
        seconds.append(time.perf_counter() - begin)
        cpu_seconds.append(time.process_time() - cpu)
    return tuple(statistics.median(times[1:] or times) for times in (seconds, cpu_seconds))


def fathom_steps(arguments, steps, export=None):
    command = [arguments.fathom, "bench", "train-steps", "--recipe", arguments.recipe, "--json",
               "--steps", str(steps), "--threads", str(arguments.threads)]
    for override in arguments.set:
        command += ["--set", override]
    if arguments.tokens:
        command += ["--tokens", arguments.tokens]
    if export:
        command += ["--export", export]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def recipe_of(arguments):
    with open(arguments.recipe) as file:
        recipe = json.load(file)
    for override in arguments.set:
        path, value = override.split("=", 1)
        section, key = path.split(".", 1)
        recipe.setdefault(section, {})[key] = json.loads(value)
    return recipe


def check_losses(ours, theirs):
    for name, a, b in zip(("loss", "MTP loss"), (ours["loss"][0], ours["mtp_loss"][0]), theirs):
        print(f"first step's {name}: fathom {a:.5f}, torch {b:.5f}")
        if not abs(a - b) <= LOSS_TOLERANCE:
            sys.exit(f"train_vs_torch: the {name} differs by {abs(a - b):.2g}; expected at most "
                     f"{LOSS_TOLERANCE}: the two do not compute the same")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fathom", default="build/fathom")
    parser.add_argument("--recipe", default="recipes/nano.json")
    parser.add_argument("--set", action="append", default=[], help="section.key=value")
    parser.add_argument("--tokens", default="", help="as pretrain cuts them; else random documents")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="of a round, the first not timed")
    parser.add_argument("--folder", default="build/train_vs_torch")
    parser.add_argument("--json", help="where to write the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    first = fathom_steps(arguments, arguments.steps, arguments.folder)
    peer = Peer(arguments.folder, recipe_of(arguments))
    check_losses(first, peer.step(0))
    ours, theirs, ours_cpu, theirs_cpu, peaks = [], [], [], [], []
    tokens = first["tokens_per_step"]
    for _ in range(arguments.rounds):
        figures = fathom_steps(arguments, arguments.steps)
        ours.append(figures["tokens_per_s"])
        ours_cpu.append(figures["tokens_per_cpu_s"])
        seconds, cpu_seconds = timed_steps(peer, arguments.steps)
        theirs.append(tokens / seconds)
        theirs_cpu.append(tokens / cpu_seconds)
        peaks.append(bf16_peak())
        print(f"fathom {ours[-1]:.0f} tokens/s, torch {theirs[-1]:.0f}; a CPU second: "
              f"{ours_cpu[-1]:.0f}, {theirs_cpu[-1]:.0f}", flush=True)
    flops = flops_per_step(peer) / tokens
    # One peak for both: what torch's largest bf16 matmul reaches. `fathom bench` may measure its
    # own one day (bench/machine); put it here for ours then.
    peak = max(peaks)
    figures = {"threads": arguments.threads, "optimizer": first["matrices"],
               "tokens_per_step": tokens, "flop_per_token": flops,
               "bf16_matmul_peak_gflop_per_s": peak / 1e9,
               "fathom_tokens_per_s": statistics.median(ours),
               "torch_tokens_per_s": statistics.median(theirs),
               "fathom_tokens_per_cpu_s": statistics.median(ours_cpu),
               "torch_tokens_per_cpu_s": statistics.median(theirs_cpu)}
    figures["ratio_of_cpu_seconds"] = (figures["fathom_tokens_per_cpu_s"] /
                                       figures["torch_tokens_per_cpu_s"])
    figures["ratio"] = figures["fathom_tokens_per_s"] / figures["torch_tokens_per_s"]
    for name in ("fathom", "torch"):
        figures[name + "_share_of_peak"] = figures[name + "_tokens_per_s"] * flops / peak
    for name, value in figures.items():
        print(f"{name:30} {value if isinstance(value, str) else round(value, 4)}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({**figures, "fathom_rounds": ours, "torch_rounds": theirs}, file, indent=2)


if __name__ == "__main__":
    main()
