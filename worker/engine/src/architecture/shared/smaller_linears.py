def _keep_heads(attention, heads, head_dim):
    inner = heads * head_dim
    for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"):
        linear = getattr(attention, name, None)
        if linear is not None:
            setattr(attention, name, _linear(linear, linear.in_features, inner))
    # The attention of a single-stream block has no output projection of its own.
    if getattr(attention, "to_out", None) is not None:
        attention.to_out[0] = _linear(attention.to_out[0], inner, attention.to_out[0].out_features)
    if getattr(attention, "to_add_out", None) is not None:
        attention.to_add_out = _linear(attention.to_add_out, inner, attention.to_add_out.out_features)
    attention.heads = heads
    attention.inner_dim = attention.inner_kv_dim = inner


def _keep_neurons(network, width):
    up, down = network.net[0], network.net[2]
    up.proj = _linear(up.proj, up.proj.in_features, width)
    network.net[2] = _linear(down, width, down.out_features)


def _linear(like, in_features, out_features):
    return nn.Linear(
        in_features, out_features, bias=like.bias is not None, device=like.weight.device, dtype=like.weight.dtype
    )


def _load(model_class, directory, kwargs):
    if directory is None:
        directory = os.path.dirname(os.path.abspath(__file__))
    return model_class.from_pretrained(directory, **kwargs)


def _save_module(directory):
    if os.path.isfile(directory):
        return
    os.makedirs(directory, exist_ok=True)
    target = os.path.join(directory, os.path.basename(__file__))
    if not (os.path.exists(target) and os.path.samefile(__file__, target)):
        shutil.copyfile(__file__, target)
