// The report of explain_call_json as text for people.
#include <fmt/format.h>

#include <iterator>
#include <nlohmann/json.hpp>

#include "regard/base/error.h"
#include "regard/base/table.h"
#include "regard/ops/explain.h"

namespace regard {
namespace {

using nlohmann::json;

/// 1234567 as "1.23 M".
std::string scaled(double value) {
  constexpr const char* units[] = {"", " k", " M", " G", " T", " P"};
  size_t unit = 0;
  while (value >= 1000 && unit + 1 < std::size(units)) value /= 1000, ++unit;
  return unit == 0 ? fmt::format("{:.0f}", value) : fmt::format("{:.3g}{}", value, units[unit]);
}

std::string milliseconds(double ms) { return fmt::format("{:.4g} ms", ms); }

std::string work_table(const json& report) {
  std::vector<std::vector<std::string>> rows = {
      {"", "FLOPs", "bytes", "FLOPs/byte", "roofline", "bound by", "measured", "GFLOP/s", "of roofline"}};
  for (const char* side : {"forward", "backward"}) {
    const json& work = report["work"][side];
    const double measured = work["measured_ms"], roofline = work["roofline_ms"];
    rows.push_back({side, scaled(work["flops"]), scaled(work["bytes"]),
                    fmt::format("{:.1f}", work["intensity"].get<double>()), milliseconds(roofline), work["bound"],
                    milliseconds(measured), fmt::format("{:.1f}", work["gflops"].get<double>()),
                    measured > 0 ? fmt::format("{:.0f}%", 100 * roofline / measured) : ""});
  }
  return table(rows, 1);
}

}  // namespace

std::string explain_text(const std::string& text) {
  const json report = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!report.is_object() || !report.contains("work"))
    fail("explain_text", "a report of explain_shape", "another text");
  const json &shape = report["shape"], &pairs = report["pairs"], &machine = report["machine"];
  std::string out =
      fmt::format("{}\n\ncall: B {} H {} Hk {} M {} N {} Dh {} Dv {}, {}\n", report["spec"].get<std::string>(),
                  shape["B"].dump(), shape["H"].dump(), shape["Hk"].dump(), shape["M"].dump(), shape["N"].dump(),
                  shape["Dh"].dump(), shape["Dv"].dump(), report["dtype"].get<std::string>());
  const double kept = pairs["kept"], all = pairs["all"];
  out += fmt::format("pairs: {}{} of {} ({:.4g}%)\n", pairs["exact"].get<bool>() ? "" : "at most ", scaled(kept),
                     scaled(all), all > 0 ? 100 * kept / all : 0);

  std::vector<std::vector<std::string>> cascade = {{"cascade", ""}};
  for (const auto& line : report["cascade"]) cascade.push_back({line[0], "= " + line[1].get<std::string>()});
  out += "\n" + table(cascade, 2);
  out += report["path"] == "fused" ? "  one pass over the keys, block by block; the backward recomputes the weights\n"
                                   : "  stripes of query rows against all keys; the backward recomputes them\n";

  std::vector<std::vector<std::string>> kernels = {{"path or kernel", "forward", "backward"}};
  for (const auto& kernel : report["kernels"])
    kernels.push_back({kernel["name"], kernel["forward"], kernel["backward"]});
  out += "\n" + table(kernels, 3) + "\n" + work_table(report);
  out += fmt::format(
      "\nmachine: {}, {} threads of {} cores; float32 FMA {:.0f} GFLOP/s ({:.0f} one thread){}; read {:.1f} GB/s "
      "({:.1f})\n",
      machine["isa"].get<std::string>(), machine["threads"].dump(), machine["cores"].dump(),
      machine["fma_gflops"].get<double>(), machine["fma_gflops_one"].get<double>(),
      machine["amx_gflops"].get<double>() > 0
          ? fmt::format("; bfloat16 AMX {:.0f} ({:.0f})", machine["amx_gflops"].get<double>(),
                        machine["amx_gflops_one"].get<double>())
          : std::string(),
      machine["read_gbps"].get<double>(), machine["read_gbps_one"].get<double>());
  return out;
}

}  // namespace regard
