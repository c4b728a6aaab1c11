#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "regard/nn/mechanism.h"

namespace regard {

/// What a host does for the layers of one forward: each is opened with what the call brings it, and closed.
///
///     Blackboard board("vit", context);
///     for (layers) board.add("blocks.0.attn", mixer->info());        // in the order in which they run
///     board.check(names of the host's own outputs);                  // before anything is computed
///     Context inner = board.open("blocks.0.attn");
///     x = mixer->forward(weights, x, inner);
///     board.close(inner);
///     board.finish();
///
/// A tensor that a layer publishes reaches every later layer that consumes its name, until another publishes it; nobody
/// reads it, nobody computes it. Names of ports must agree in form. An output "LAYER.NAME" of the host is output NAME
/// of that layer ("blocks.3.attn.tap.entropy"). "loss" is the sum of all auxiliary losses, "loss.NAME" of those of a
/// name. Nothing is kept beyond the forward, so that a recomputed one is the same.
class Blackboard {
 public:
  Blackboard(std::string id, Context& host) : id_(std::move(id)), host_(host) {}

  void add(const std::string& layer, const Info& info);
  void check(const std::vector<Port>& own_outputs);
  /// The layer's context: training, path, executor, edits, inputs that its Info lists, what is published for it.
  Context open(const std::string& layer);
  void close(Context& inner);
  void finish();

 private:
  struct Layer {
    std::string name;
    const Info* info;
    std::vector<std::string> wanted;             ///< by the caller
    std::set<std::string> for_others;            ///< published for later layers, and losses
    std::map<std::string, std::string> sources;  ///< what it consumes, by the layer that publishes it
  };
  Layer& of(const std::string& layer);
  void connect();
  void want_losses(const std::string& wanted);
  bool route(const std::string& wanted);

  std::string id_;
  Context& host_;
  std::vector<Layer> layers_;
  std::map<std::string, at::Tensor> published_;            ///< "LAYER/NAME"
  std::map<std::string, std::vector<at::Tensor>> losses_;  ///< by name
};

/// The context of a layer inside a host: what the call says of every layer, and the inputs that `info` lists.
Context inner_context(const Info& info, const std::string& name, Context& host);

/// Throws unless the tensor is of the form: "float (B, N)".
void check_form(const std::string& id, const Port& port, const at::Tensor& tensor);

}  // namespace regard
