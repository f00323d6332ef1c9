// Plays a hosted world in a terminal, and is the program of the client's test:
//
//     worldsim_example play tcp://127.0.0.1:5570           arrow keys; Tab: a prompt; r: begin anew; q: end
//     worldsim_example drive tcp://127.0.0.1:5570 7 300    300 steps: the SHA-256 of each frame
//     worldsim_example tour tcp://127.0.0.1:5570           every other thing a client can do
//
// Each takes two more words for a host that has keys: the client's secret key file and the host's public one.
// The actions of `drive` are 0 or 1, for a world of two actions, by a plain rule that other languages follow too.

#include "worldsim.hpp"

#include <functional>
#include <iomanip>
#include <iostream>
#include <memory>
#include <sstream>

#ifndef _WIN32
#include <poll.h>
#include <termios.h>
#include <unistd.h>
#endif

namespace {

using namespace std::chrono_literals;

/// SHA-256 as FIPS 180-4 tells it, in hex.
std::string sha256(std::vector<std::uint8_t> bytes) {
  // The constants are the first 32 bits behind the point of roots of the first primes.
  static constexpr std::uint32_t k[64] = {
      0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
      0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
      0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
      0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
      0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
      0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
      0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
      0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
  std::uint32_t h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  const std::uint64_t bits = 8 * bytes.size();
  bytes.push_back(0x80);
  while (bytes.size() % 64 != 56) bytes.push_back(0);
  for (int shift = 56; shift >= 0; shift -= 8) bytes.push_back(static_cast<std::uint8_t>(bits >> shift));
  const auto turn = [](std::uint32_t x, int n) { return x >> n | x << (32 - n); };
  for (std::size_t at = 0; at < bytes.size(); at += 64) {
    std::uint32_t w[64];
    for (std::size_t i = 0; i < 16; ++i) {
      const std::uint8_t* b = &bytes[at + 4 * i];
      w[i] = std::uint32_t{b[0]} << 24 | std::uint32_t{b[1]} << 16 | std::uint32_t{b[2]} << 8 | b[3];
    }
    for (int i = 16; i < 64; ++i)
      w[i] = w[i - 16] + (turn(w[i - 15], 7) ^ turn(w[i - 15], 18) ^ w[i - 15] >> 3) + w[i - 7] +
             (turn(w[i - 2], 17) ^ turn(w[i - 2], 19) ^ w[i - 2] >> 10);
    std::uint32_t s[8];
    std::copy(h, h + 8, s);
    for (int i = 0; i < 64; ++i) {
      const std::uint32_t one = s[7] + (turn(s[4], 6) ^ turn(s[4], 11) ^ turn(s[4], 25)) +
                                ((s[4] & s[5]) ^ (~s[4] & s[6])) + k[i] + w[i];
      const std::uint32_t two = (turn(s[0], 2) ^ turn(s[0], 13) ^ turn(s[0], 22)) +
                                ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
      std::copy_backward(s, s + 7, s + 8);
      s[4] += one;
      s[0] = one + two;
    }
    for (int i = 0; i < 8; ++i) h[i] += s[i];
  }
  std::ostringstream hex;
  for (const std::uint32_t word : h) hex << std::hex << std::setw(8) << std::setfill('0') << word;
  return hex.str();
}

/// A client whose connection breaks at two sends: just before one, and just after the other.
class unlucky_client : public worldsim::client {
 public:
  unlucky_client(const std::string& address, const worldsim::settings& how, int lost_request, int lost_reply)
      : client(address, how), lost_request_(lost_request), lost_reply_(lost_reply) {}

 protected:
  void send(const std::string& header) override {
    ++sent_;
    if (sent_ != lost_request_) client::send(header);
    if (sent_ == lost_reply_) std::this_thread::sleep_for(100ms);  // the host draws the frame, but its reply is lost
    if (sent_ == lost_request_ || sent_ == lost_reply_) disconnect();
  }

 private:
  int lost_request_;
  int lost_reply_;
  int sent_ = 0;
};

void drive(const std::string& address, const worldsim::settings& how, std::int64_t seed, int count) {
  unlucky_client client(address, how, count / 3, 2 * count / 3);
  worldsim::session session = client.open({{"seed", seed}, {"prompt", "a cart"}});
  std::cout << sha256(session.last().pixels) << '\n';
  std::int64_t x = seed;
  for (int i = 0; i < count; ++i) {
    x = (1103515245 * x + 12345) % (std::int64_t{1} << 31);
    std::cout << sha256(session.step(x >> 16 & 1).pixels) << '\n';
  }
  session.close();
  std::cerr << "connections: " << client.connections() << ", steps: " << session.step_count() << '\n';
}

void expect(const std::string& what, bool well) {
  if (!well) throw worldsim::error("tour", what + " is not as it should be");
}

std::string refusal(const std::function<void()>& ask) {
  try {
    ask();
    return "";
  } catch (const worldsim::error& error) {
    return error.code();
  }
}

void tour(const std::string& address, const worldsim::settings& how) {
  worldsim::client client(address, how);
  const worldsim::json world = client.connect().at("worlds").at(0);
  const std::string key = world.at("keys").empty() ? "right" : world.at("keys").items().begin().key();
  std::cout << world.at("name") << ", key " << key << '\n';

  worldsim::session session = client.open({{"seed", 3}, {"prompt", "a cart"}, {"guidance", 1.5}});
  const std::int64_t begin = session.step_count();
  expect("open", session.last().step == begin && session.prompt() == "a cart");
  const std::string snapshot = session.snapshot();
  worldsim::session twin = session.fork();
  const worldsim::frame next = session.step_keys(key);
  expect("fork", twin.token() != session.token() && twin.step_keys(key).pixels == next.pixels);
  session.restore(snapshot);
  expect("restore", session.step_keys(key).pixels == next.pixels && session.step_count() == begin + 1);
  expect("reward", next.ended > 0 && next.ended < 1);
  expect("attach", client.attach(session.token()).last().pixels == next.pixels);
  session.set_prompt("a cart");
  expect("refusal", refusal([&] { session.step(99); }) == "bad-action");
  expect("words", refusal([&] { session.set_prompt("\xff"); }) == "bad-field");
  const worldsim::frame first = session.reset({{"seed", 4}, {"prompt", "a cart"}});
  expect("reset", session.step_count() == begin);
  expect("reset", session.reset({{"seed", 4}, {"prompt", "a cart"}}).pixels == first.pixels);

  session.watch();
  session.run(200);
  session.input_keys(key);
  std::int64_t last = begin;
  for (int i = 0; i < 100; ++i) {  // more than are sent without new credits
    const std::optional<worldsim::frame> frame = session.next_frame(5s);
    expect("watch", frame && (i == 51 ? frame->step > last : frame->step == last + 1 + frame->dropped));
    last = frame->step;
    if (i == 50) client.disconnect();  // from here the frames come over a new connection
  }
  session.pause();
  expect("pause", session.step_count() >= last && session.step_keys("").step == session.step_count());
  session.unwatch();
  session.close();
  twin.close();
  expect("close", refusal([&] { twin.step_keys(key); }) == "no-session");

  std::thread stopper([&] {
    std::this_thread::sleep_for(50ms);
    client.stop();
  });
  const std::string code = refusal([&] {
    while (true) client.call("stats");
  });
  stopper.join();
  expect("stop", code == "stopped");
  std::cout << "all well" << std::endl;
}

#ifndef _WIN32

/// The terminal without echo, a key at a time, for as long as this lives.
class raw_terminal {
 public:
  raw_terminal() {
    tcgetattr(STDIN_FILENO, &before_);
    termios raw = before_;
    raw.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);
    tcsetattr(STDIN_FILENO, TCSANOW, &raw);
    std::cout << "\x1b[2J\x1b[?25l";  // an empty screen, no cursor
  }
  ~raw_terminal() {
    tcsetattr(STDIN_FILENO, TCSANOW, &before_);
    std::cout << "\x1b[0m\x1b[?25h" << std::endl;
  }
  raw_terminal(const raw_terminal&) = delete;
  raw_terminal& operator=(const raw_terminal&) = delete;

  /// What was typed since the last call: "left", "up", "tab", "r", ... or "" for nothing.
  std::string key() {
    pollfd input{STDIN_FILENO, POLLIN, 0};
    char typed[8] = {};
    if (poll(&input, 1, 0) <= 0) return "";
    if (read(STDIN_FILENO, typed, 1) != 1) return "q";  // the terminal is gone
    if (typed[0] == '\t') return "tab";
    if (typed[0] == ' ') return "space";
    if (typed[0] != '\x1b') return std::string(1, typed[0]);
    if (read(STDIN_FILENO, typed, 2) != 2) return "";
    const std::map<char, std::string> arrows = {{'A', "up"}, {'B', "down"}, {'C', "right"}, {'D', "left"}};
    const auto arrow = arrows.find(typed[1]);
    return arrow == arrows.end() ? "" : arrow->second;
  }

 private:
  termios before_;
};

/// Two rows of a frame are one row of half blocks, the upper one in the foreground's colour.
void show(const worldsim::frame& frame) {
  std::string text = "\x1b[H";
  const auto colour = [&](int row, int column) {
    const std::uint8_t* rgb = &frame.pixels[3 * (static_cast<std::size_t>(row) * frame.width + column)];
    return std::to_string(rgb[0]) + ';' + std::to_string(rgb[1]) + ';' + std::to_string(rgb[2]) + 'm';
  };
  for (int row = 0; row + 1 < frame.height; row += 2, text += "\x1b[0m\n")
    for (int column = 0; column < frame.width; ++column)
      text += "\x1b[38;2;" + colour(row, column) + "\x1b[48;2;" + colour(row + 1, column) + "\u2580";
  std::cout << text << frame.prompt << "  frame " << frame.step << "\x1b[K\n\x1b[K" << std::flush;
}

void play(const std::string& address, const worldsim::settings& how) {
  constexpr auto held_for = 500ms;  // a terminal tells no key's release, and its repeat begins about so late
  worldsim::client client(address, how);
  worldsim::session session = client.open();
  session.watch();
  session.run();
  std::map<std::string, worldsim::clock::time_point> pressed;
  std::string held;
  auto terminal = std::make_unique<raw_terminal>();
  while (true) {
    if (const auto frame = session.next_frame(20ms)) show(*frame);
    for (std::string key = terminal->key(); !key.empty(); key = terminal->key()) {
      if (key == "q") {
        session.close();
        return;
      }
      if (key == "r") {
        session.reset();
      } else if (key == "tab") {
        terminal.reset();  // as it was, to type a line
        std::cout << "prompt: " << std::flush;
        std::string words;
        if (std::getline(std::cin, words) && !words.empty()) session.set_prompt(words);
        terminal = std::make_unique<raw_terminal>();
      } else {
        pressed[key] = worldsim::clock::now();
      }
    }
    std::string keys;
    for (const auto& [key, when] : pressed)
      if (worldsim::clock::now() - when < held_for) keys += (keys.empty() ? "" : "+") + key;
    if (keys != std::exchange(held, keys)) {
      try {
        session.input_keys(keys);
      } catch (const worldsim::error& error) {
        if (error.code() != "bad-action") throw;  // keys that mean nothing in this world do nothing
      }
    }
  }
}

#endif

}  // namespace

int main(int count, char** words) try {
  const std::vector<std::string> args(words + 1, words + count);
  const std::size_t needed = !args.empty() && args[0] == "drive" ? 4 : 2;
  worldsim::settings how;
  how.name = "worldsim C++ example";
  if (args.size() == needed + 2) how.keys = worldsim::read_keys(args[needed], args[needed + 1]);
  if (args.size() != needed && !how.keys) {
    std::cerr << "usage: worldsim_example play ADDRESS | drive ADDRESS SEED COUNT | tour ADDRESS, "
                 "with keys: SECRET_KEY_FILE HOST_KEY_FILE\n";
    return 2;
  }
  if (args[0] == "drive")
    drive(args[1], how, std::stoll(args[2]), std::stoi(args[3]));
  else if (args[0] == "tour")
    tour(args[1], how);
#ifndef _WIN32
  else
    play(args[1], how);
#endif
  return 0;
} catch (const worldsim::error& error) {
  std::cerr << error.code() << ": " << error.what() << '\n';
  return 1;
}
