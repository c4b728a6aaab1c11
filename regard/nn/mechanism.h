#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <string>
#include <vector>

#include "regard/nn/context.h"
#include "regard/nn/fields.h"
#include "regard/nn/weights.h"

/// A mechanism is a pure function of weights. It is declared by one struct:
///
///     struct MyPool {
///       struct Config { int64_t width = 0; void fields(Fields& f); void validate() const; };
///       static Info info();
///       static void declare(const Config& config, Declaration& weights);
///       static at::Tensor forward(const Config& config, const Weights& weights, const at::Tensor& x, Context&
///       context);
///     };
///
/// and registered by one line in its source: REGARD_MECHANISM(MyPool). One that decodes step by step declares what it
/// keeps: `static std::vector<CacheStream> caches(const Config& config);`, empty for configurations that cannot.
/// Everything else (the C++ and Python modules, checkpoints, the arena, `regard list`, `regard check`) follows from
/// that.
namespace regard {

/// An input beside x, an output beside the main one, a tensor on the blackboard or a loss.
struct Port {
  std::string name;
  std::string doc;  ///< shape, dtype, meaning
  /// Of what is published or consumed: its type and shape, "float (B, N)". Both sides must say the same where both say
  /// it, and the tensor must be so: bool, int or float; letters are sizes, equal ones equal.
  std::string form = {};
};

/// A member of a Config as `Fields` sees it.
struct ConfigField : Port {
  std::string type;          ///< "bool", "int", "float", "str", "float | null", "int | null", "list of int", ...
  std::string default_json;  ///< "1e-06", "null", "\"auto\""
};

/// How cases computed by the official code (safetensors, see tests/golden/README.md) map to this mechanism. Keys of the
/// case's configuration are the official code's, nested ones with a dot ("ra.n_relations"); those not listed keep their
/// names. In a name on the left '*' stands for any text, '#' for a number; an exact name goes before patterns, a
/// pattern before those after it.
struct Golden {
  /// official key -> ours; "" drops the key; "key=value" -> a JSON object merged over the configuration.
  std::vector<std::pair<std::string, std::string>> config;
  std::string defaults;  ///< JSON object: the official code's defaults where they are not ours
  std::string fixed;     ///< JSON object merged over the configuration ("parity": true)
  /// in.NAME -> our input ("x" or a Port); "" ignores it; "!PORT" inverts a boolean (true = attend for hidden ones).
  std::vector<std::pair<std::string, std::string>> inputs;
  /// out.NAME -> our output, "loss.NAME" among them ("" is the main one); "-" ignores it; "+PORT" is an output whose
  /// sum the case adds to its loss.
  std::vector<std::pair<std::string, std::string>> outputs;
  /// prefix of param.NAME -> ours; "" strips it; "-" ignores it. Where several fit, the first of the longest ones that
  /// leads to a weight.
  std::vector<std::pair<std::string, std::string>> weights;
  /// Why the cases of this id cannot run on the mechanism alone ("of the whole backbone"); they are skipped with it.
  std::string excuse;

  /// Cases of other forms, each with a mapping of its own: those under `folder` (empty: the mechanism's id) that hold a
  /// tensor which `when` matches ("param.ra.*"; empty: all of the folder).
  std::vector<Golden> forms;
  std::string folder, when;

  /// A case of several calls in one file, in order: each with a mapping of its own, for the mechanism `mechanism`
  /// (empty: this one). "out.NAME" among a step's inputs is the output of an earlier step. The losses of all steps add
  /// up.
  std::vector<Golden> steps;
  std::string mechanism;
};

enum class Role : uint8_t { mixer, pool, host, reducer };

struct Info {
  std::string id;           ///< "simpool", as in the catalog
  std::string family;       ///< pooling, dense, sparse, linear, routing, vision, ...
  Role role = Role::mixer;  ///< mixer (B, N, D) -> (B, N, D); pool (B, N, D) -> (B, D); host: a model of its
                            ///< own; reducer (B, N, D) -> (B, K, D), other tokens than it was given
  std::string title;        ///< one line
  std::string equation;     ///< one line
  std::string paper;        ///< authors, year, title
  std::vector<Port> inputs;
  std::vector<Port> outputs;
  std::vector<Port> consumes;   ///< what earlier layers may have published: inputs that hosts connect by name
  std::vector<Port> publishes;  ///< what later layers may consume: outputs computed when somebody reads them
  std::vector<Port> losses;     ///< scalar auxiliary losses: outputs "loss.NAME"
  bool needs_grid = false;
  bool takes_maps = false;     ///< x may also be (B, D, H, W) or (B, D, T, H, W)
  bool takes_prefix = true;    ///< has a place for tokens outside the grid
  bool needs_prefix = false;   ///< reads token 0 as the class token
  bool couples_batch = false;  ///< a sample's result may depend on its batch-mates
  /// Configurations (JSON) small enough to check in a second, each with every required key; width 8 to 16.
  std::vector<std::string> examples;
  Golden golden;
};

/// One configuration of a mechanism: pure, immutable, shared.
class Instance {
 public:
  virtual ~Instance() = default;
  virtual const Info& info() const = 0;
  virtual const std::string& config() const = 0;  ///< canonical JSON, defaults filled in
  virtual const std::vector<WeightDeclaration>& weights() const = 0;
  virtual const std::vector<CacheStream>& caches() const = 0;  ///< empty: it cannot decode step by step
  /// Main output; checks x, the weights' shapes and the context before anything is computed.
  virtual at::Tensor forward(at::TensorList weights, const at::Tensor& x, Context& context) const = 0;
};

class Mechanism {
 public:
  virtual ~Mechanism() = default;
  virtual const Info& info() const = 0;
  /// Parses and validates once per text (kept for the life of the process).
  virtual std::shared_ptr<const Instance> configure(const std::string& config_json) const = 0;
  virtual std::vector<ConfigField> config_fields() const = 0;  ///< in declared order
  virtual std::string default_config() const = 0;              ///< JSON
  virtual bool listed() const { return true; }                 ///< whether the catalogue names it
};

// The registry.
const Mechanism& mechanism(const std::string& id);              ///< throws with the nearest name
std::vector<const Mechanism*> mechanisms();                     ///< those listed, by family, then id
void register_mechanism(std::unique_ptr<Mechanism> mechanism);  ///< throws when the id is taken
void load_plugin(const std::string& library);                   ///< opens a shared library that registers more
std::string registry_json();                                    ///< of those listed
std::string description_json(const std::string& id);            ///< of one, listed or not

/// The op behind every owner: torch.ops.regard.mechanism, through the dispatcher. Returns the main output, then the
/// outputs named in context.wanted, in that order.
std::vector<at::Tensor> run(const Instance& instance, at::TensorList weights, const at::Tensor& x,
                            const Context& context);

/// Fresh weights in declared order (float32 unless said), from torch's default generator or the given one.
std::vector<at::Tensor> initialize(const Instance& instance, const at::TensorOptions& options = {},
                                   std::optional<at::Generator> generator = std::nullopt);

}  // namespace regard

#include "regard/nn/register.h"
