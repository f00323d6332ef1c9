// A client of worldsim hosts in one header: C++17 over cppzmq (zmq.hpp) and nlohmann-json.
//
//     worldsim::client client{"tcp://127.0.0.1:5570"};
//     worldsim::session session = client.open({{"seed", 7}, {"prompt", "a desert road"}});
//     const worldsim::frame& frame = session.step_keys("left+up");  // frame.pixels: RGB, row by row from the top
//     session.close();
//
// The protocol is told in worldsim's docs/protocol.md; `fields` below are a verb's, by the names they have there.

#pragma once

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <fstream>
#include <map>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>
#include <zmq.hpp>

namespace worldsim {

using json = nlohmann::json;
using clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

/// What the host refuses, or why it cannot be reached.
class error : public std::runtime_error {
 public:
  error(std::string code, const std::string& message, json details = json::object())
      : std::runtime_error(message), code_(std::move(code)), details_(std::move(details)) {}

  /// One of the protocol's, or "no-host" where nobody answers, or "stopped" after client::stop.
  const std::string& code() const noexcept { return code_; }

  /// What else the host says of it, such as the `step` of out-of-order.
  const json& details() const noexcept { return details_; }

 private:
  std::string code_;
  json details_;
};

/// A message of the host: the header, and the parts after it.
struct message {
  json header;
  std::vector<std::vector<std::uint8_t>> parts;
};

/// A frame, and what the host says of it.
struct frame {
  int width = 0;
  int height = 0;
  std::vector<std::uint8_t> pixels;  ///< RGB, one byte each, row by row from the top
  std::int64_t step = 0;             ///< how many frames the session had with this one
  std::string prompt;
  double reward = 0;
  double ended = 0;  ///< learned probability that the episode ended with it
  bool terminated = false;
  bool truncated = false;
  std::int64_t dropped = 0;  ///< frames before this one that were drawn and not sent, when watching

  frame() = default;

  explicit frame(message&& from) try {
    const json& about = from.header.at("buffers").at(0);
    height = about.at("shape").at(0);
    width = about.at("shape").at(1);
    pixels = std::move(from.parts.at(0));
    if (height < 0 || width < 0 || static_cast<std::int64_t>(pixels.size()) != std::int64_t{3} * height * width)
      throw std::out_of_range("another size than it says");
    step = from.header.value("step", step);
    prompt = from.header.value("prompt", prompt);
    reward = from.header.value("reward", reward);
    ended = from.header.value("ended", ended);
    terminated = from.header.value("terminated", terminated);
    truncated = from.header.value("truncated", truncated);
    dropped = from.header.value("dropped", dropped);
  } catch (const std::exception& wrong) {
    throw error("bad-message", std::string("the host's reply has no raw frame: ") + wrong.what());
  }
};

/// For a host that has keys, in the 40 characters of Z85.
struct curve_keys {
  std::string public_key;
  std::string secret_key;
  std::string host_key;
};

/// Keys out of two files that `worldsim keys` makes: the client's NAME.key_secret and the host's NAME.key.
inline curve_keys read_keys(const std::string& secret_file, const std::string& host_file) {
  auto find = [](const std::string& file, const std::string& name) {
    std::ifstream from(file);
    for (std::string line; std::getline(from, line);) {
      const std::size_t at = line.find(name + " = \"");
      if (at != std::string::npos && line.find('#') > at) return line.substr(at + name.size() + 4, 40);
    }
    throw error("no-host", file + " is no file with a " + name + "; `worldsim keys` makes some.");
  };
  return {find(secret_file, "public-key"), find(secret_file, "secret-key"), find(host_file, "public-key")};
}

/// How to reach a host.
struct settings {
  std::string name = "worldsim C++";
  milliseconds timeout{5'000};    ///< without a reply, after which a request is sent again, over a new connection
  milliseconds patience{60'000};  ///< after which it is given up: as long as a host may need to be started again
  std::optional<curve_keys> keys;
};

class session;

/// Talks to a host. For one thread, but for `stop`. It must outlive its sessions.
class client {
 public:
  /// Nothing is sent yet; the first call connects.
  explicit client(std::string address = "tcp://127.0.0.1:5570", settings how = {})
      : address_(std::move(address)), settings_(std::move(how)), token_(new_token()) {}

  client(const client&) = delete;
  client& operator=(const client&) = delete;

  /// Sessions live on until their leases end.
  virtual ~client() = default;

  /// Connect and say hello; gives what the host says of itself and its worlds.
  const json& connect() {
    greet(clock::now() + settings_.patience);
    return hello_;
  }

  /// Begin a session; fields: world, seed, prompt, start, guidance, snapshot.
  session open(json fields = json::object());

  /// A session that is there already, by one of its tokens: after a restart, to play second, to watch.
  session attach(const std::string& token);

  /// Ask anything and wait for the answer. A request whose answer is lost is sent again; the host does nothing twice.
  message call(const std::string& verb, json fields = json::object()) {
    return ask(verb, std::move(fields), clock::now() + settings_.patience, true);
  }

  /// Make whatever waits give up, for good. Any thread may call this.
  void stop() noexcept { stopped_ = true; }

  /// Let go of the connection; the next call makes a new one.
  void disconnect() {
    socket_.reset();
    greeted_ = false;
  }

  /// Connections that were made so far; libzmq mends some by itself.
  int connections() const noexcept { return connections_; }

 protected:
  /// Put a request on the wire. Open to be overridden for tests of what happens when that fails.
  virtual void send(const std::string& header) {
    // Where the queue is full it is not sent, and sent again when the time for an answer is over.
    static_cast<void>(socket_->send(zmq::buffer(header), zmq::send_flags::dontwait));
  }

 private:
  friend class session;

  struct watching {
    int left = 0;  // credits
    std::deque<frame> waiting;
  };

  message ask(const std::string& verb, json fields, clock::time_point end, bool greeting) {
    const std::int64_t id = ++ids_;
    const std::string request = pack(id, verb, std::move(fields));
    while (true) {
      if (!socket_) reach();
      if (greeting && !greeted_) greet(end);
      send(request);
      std::optional<message> reply = answer(id, std::min(end, clock::now() + settings_.timeout));
      if (!reply) {  // it may have been done or not: the same request finds out, over a connection that is not dead
        if (clock::now() >= end)
          throw error("no-host", "the host at " + address_ + " has not answered for " +
                                     std::to_string(settings_.patience.count()) + " ms. Is it running (worldsim " +
                                     "serve), and does it know our key, if it has keys? Give it more patience, or " +
                                     "start it again with --resume.");
        disconnect();
        continue;
      }
      if (!reply->header.contains("error")) return std::move(*reply);
      const json& said = reply->header["error"];
      error wrong(said.value("code", ""), said.value("message", ""), said);
      if (wrong.code() == "hello-first")
        greeted_ = false;
      else if (wrong.code() == "too-fast" || wrong.code() == "stopping")
        rest(std::min(end, clock::now() + milliseconds(static_cast<int>(1000 * said.value("wait", 0.1)) + 1)));
      else
        throw wrong;
      if (clock::now() >= end) throw wrong;
    }
  }

  static std::string pack(std::int64_t id, const std::string& verb, json fields) try {
    json header = {{"v", 1}, {"id", id}, {"verb", verb}};
    header.update(fields);
    return header.dump();
  } catch (const json::exception& wrong) {
    throw error("bad-field", wrong.what());  // such as words that are not UTF-8
  }

  void greet(clock::time_point end) {
    hello_ = ask("hello", {{"client", token_}, {"name", settings_.name}}, end, false).header;
    greeted_ = true;
    for (auto& [token, one] : watched_) one.left = 0;  // the host knows watchers by their connection: this is a new one
  }

  std::optional<message> answer(std::int64_t id, clock::time_point end) {
    while (std::optional<message> got = receive(end)) {
      const json verb = got->header.value("verb", json()), its = got->header.value("id", json());
      if (verb == "frame" || verb == "bye") continue;
      if (its == id || its.is_null()) return got;  // null: what we said was nothing that has an id
    }
    return std::nullopt;  // another id is an answer to what was asked before, and came late
  }

  /// The next message if one comes in time; a frame that was pushed is put where its session finds it.
  std::optional<message> receive(clock::time_point end) {
    if (!socket_ || !wait(end)) return std::nullopt;
    message got;
    zmq::message_t part;
    for (bool first = true, more = true; more; first = false) {
      while (!socket_->recv(part)) {
      }
      more = part.more();
      const auto* data = part.data<std::uint8_t>();
      if (first)
        got.header = json::parse(data, data + part.size(), nullptr, false);
      else
        got.parts.emplace_back(data, data + part.size());
    }
    if (!got.header.is_object()) throw error("bad-message", "the host's header is no JSON object.");
    if (got.header.value("verb", json()) == "frame") {
      const auto one = watched_.find(got.header.value("session", ""));
      if (one != watched_.end()) {
        one->second.left = got.header.value("credits", 0);
        one->second.waiting.emplace_back(message(got));
      }
    }
    return got;
  }

  bool wait(clock::time_point end) {
    while (true) {  // in slices, so that `stop` is heard
      check_stopped();
      const auto left = std::chrono::duration_cast<milliseconds>(end - clock::now()) + milliseconds(1);
      zmq::pollitem_t item{socket_->handle(), 0, ZMQ_POLLIN, 0};
      try {
        if (zmq::poll(&item, 1, std::clamp(left, milliseconds(0), milliseconds(50))) > 0) return true;
      } catch (const zmq::error_t& interrupted) {
        if (interrupted.num() != EINTR) throw;
      }
      if (clock::now() >= end) return false;
    }
  }

  void rest(clock::time_point end) {
    for (; clock::now() < end; std::this_thread::sleep_for(milliseconds(5))) check_stopped();
  }

  void reach() try {
    check_stopped();
    zmq::socket_t fresh(context_, zmq::socket_type::dealer);
    fresh.set(zmq::sockopt::linger, 0);
    fresh.set(zmq::sockopt::sndhwm, 64);
    fresh.set(zmq::sockopt::rcvhwm, 64);
    fresh.set(zmq::sockopt::reconnect_ivl, 50);
    fresh.set(zmq::sockopt::reconnect_ivl_max, 1000);
    if (settings_.keys) {
      fresh.set(zmq::sockopt::curve_publickey, settings_.keys->public_key);
      fresh.set(zmq::sockopt::curve_secretkey, settings_.keys->secret_key);
      fresh.set(zmq::sockopt::curve_serverkey, settings_.keys->host_key);
    }
    fresh.connect(address_);
    socket_ = std::move(fresh);
    greeted_ = false;
    ++connections_;
  } catch (const zmq::error_t& wrong) {
    throw error("no-host", "cannot connect to '" + address_ + "' (" + wrong.what() +
                               "); try tcp://127.0.0.1:5570, and look at the keys if there are any.");
  }

  void check_stopped() const {
    if (stopped_) throw error("stopped", "the client was stopped.");
  }

  static std::string new_token() {
    std::random_device random;
    std::string token;
    for (int i = 0; i < 32; ++i) token += "0123456789abcdef"[random() % 16];
    return token;
  }

  std::string address_;
  settings settings_;
  std::string token_;
  json hello_;
  std::int64_t ids_ = 0;
  int connections_ = 0;
  bool greeted_ = false;
  std::atomic<bool> stopped_{false};
  std::map<std::string, watching> watched_;
  zmq::context_t context_;
  std::optional<zmq::socket_t> socket_;  // behind its context, so that it goes first
};

/// A world being played. It lives with the host until `close`, or until its lease ends.
class session {
 public:
  const std::string& token() const noexcept { return token_; }              ///< who knows it may do everything
  const std::string& watch_token() const noexcept { return watch_token_; }  ///< who knows it may watch
  const std::string& world() const noexcept { return world_; }
  const std::string& prompt() const noexcept { return prompt_; }  ///< in force for the next frame

  /// How many frames it has, as far as lock-step goes; watched frames have numbers of their own.
  std::int64_t step_count() const noexcept { return step_; }

  /// The last frame that came as an answer.
  const frame& last() const noexcept { return last_; }

  /// The next frame under an action: a number, a list or an object. A list of one is json::array({0.5}).
  const frame& step(json action) { return drawn(call("step", {{"step", step_}, {"action", std::move(action)}})); }

  /// The next frame under the keys held, such as "left+up"; "" holds none.
  const frame& step_keys(const std::string& keys) { return drawn(call("step", {{"step", step_}, {"keys", keys}})); }

  /// Begin anew; fields: seed, prompt, start, guidance.
  const frame& reset(json fields = json::object()) { return jumped(call("reset", std::move(fields))); }

  /// Condition the frames from now on.
  void set_prompt(const std::string& words) { take(call("prompt", {{"prompt", words}})); }

  /// Keep the session as it is now, with the host; gives a token for `restore`.
  std::string snapshot() { return call("snapshot").header.at("snapshot"); }

  /// Go back to a snapshot.
  const frame& restore(const std::string& snapshot) { return jumped(call("restore", {{"snapshot", snapshot}})); }

  /// Open a twin: under the same actions it draws the same frames, unless it gets a `seed` of its own.
  session fork(json fields = json::object()) { return session(*client_, call("fork", std::move(fields))); }

  /// End it.
  void close() {
    client_->watched_.erase(token_);
    call("close");
  }

  /// Start the clock: the host draws frames at a pace, the world's own if not given.
  void run(std::optional<double> fps = std::nullopt) {
    take(call("run", fps ? json{{"fps", *fps}} : json::object()));
  }

  /// Stop the clock.
  void pause() { take(call("pause")); }

  /// Hold an action until the next one, while the clock runs.
  void input(json action) { call("input", {{"action", std::move(action)}}); }

  /// Hold keys until the next ones, while the clock runs.
  void input_keys(const std::string& keys) { call("input", {{"keys", keys}}); }

  /// Have every frame sent to us; `next_frame` gives them.
  void watch() {
    client_->watched_.try_emplace(token_);
    top_up();
  }

  /// No more of that.
  void unwatch() {
    client_->watched_.erase(token_);
    call("unwatch");
  }

  /// The next watched frame, if one comes in time.
  std::optional<frame> next_frame(milliseconds patience) {
    const auto end = clock::now() + patience;
    while (true) {
      top_up();
      const auto one = client_->watched_.find(token_);
      if (one == client_->watched_.end()) return std::nullopt;
      if (!one->second.waiting.empty()) {
        frame next = std::move(one->second.waiting.front());
        one->second.waiting.pop_front();
        return next;
      }
      if (!client_->receive(std::min(end, clock::now() + client_->settings_.timeout))) {
        if (clock::now() >= end) return std::nullopt;
        call("watch", {{"credits", 0}});  // nothing for long: are we still connected? It renews the lease, too
      }
    }
  }

 private:
  friend class client;

  static constexpr int credits = 32;  // frames that may be under way to us when watching

  session(client& of, message&& begun, const std::string& token = "")
      : client_(&of), token_(token.empty() ? begun.header.at("session").get<std::string>() : token),
        watch_token_(begun.header.value("watch", "")), world_(begun.header.value("world", "")) {
    drawn(std::move(begun));
  }

  message call(const std::string& verb, json fields = json::object()) {
    fields["session"] = token_;
    return client_->call(verb, std::move(fields));
  }

  void top_up() {
    const auto one = client_->watched_.find(token_);
    if (one == client_->watched_.end() || one->second.left > credits / 2) return;
    const int more = credits - std::exchange(one->second.left, 0);
    call("watch", {{"credits", more}});
    one->second.left = credits;  // or a little less: the next frame says
  }

  void take(const message& reply) {
    step_ = reply.header.value("step", step_);
    prompt_ = reply.header.value("prompt", prompt_);
  }

  const frame& drawn(message&& reply) {
    take(reply);
    return last_ = frame(std::move(reply));
  }

  const frame& jumped(message&& reply) {
    const auto one = client_->watched_.find(token_);
    if (one != client_->watched_.end()) one->second.waiting.clear();  // frames of before
    return drawn(std::move(reply));
  }

  client* client_;
  std::string token_;
  std::string watch_token_;
  std::string world_;
  std::string prompt_;
  std::int64_t step_ = 0;
  frame last_;
};

inline session client::open(json fields) { return session(*this, call("open", std::move(fields))); }

inline session client::attach(const std::string& token) {
  return session(*this, call("render", {{"session", token}}), token);
}

}  // namespace worldsim
