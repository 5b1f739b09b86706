// A file that `msad export` has written, run by onnxruntime's C++ interface: one photograph in, score and mask out.
//
//     g++ -std=c++17 -O2 -I INCLUDE detect.cpp -o detect -L LIB -lonnxruntime
//     detect gear.onnx photograph.ppm [threshold]
//
// A photograph is a binary PPM (`convert photograph.png photograph.ppm`), to need no library for images: 8 bit RGB.
#include <onnxruntime_cxx_api.h>

#include <array>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

struct Photograph {
  int64_t height = 0, width = 0;
  std::vector<uint8_t> rgb;  // height × width × 3, row by row
};

Photograph read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string kind;
  int64_t largest = 0;
  Photograph image;
  if (!(file >> kind >> image.width >> image.height >> largest) || kind != "P6" || largest != 255)
    throw std::runtime_error(path + ": no binary PPM of 8 bits");
  file.get();  // the one white space before the pixels
  image.rgb.resize(image.height * image.width * 3);
  if (!file.read(reinterpret_cast<char*>(image.rgb.data()), image.rgb.size()))
    throw std::runtime_error(path + ": cut off");
  return image;
}

int main(int count, char** words) try {
  if (count < 3) throw std::runtime_error("usage: detect MODEL.onnx PHOTOGRAPH.ppm [THRESHOLD]");
  Ort::Env environment(ORT_LOGGING_LEVEL_ERROR, "detect");
  Ort::Session session(environment, words[1], Ort::SessionOptions());
  Ort::AllocatorWithDefaultOptions allocator;
  auto category = session.GetModelMetadata().LookupCustomMetadataMapAllocated("category", allocator);

  Photograph image = read(words[2]);
  auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  std::array<int64_t, 4> shape{1, image.height, image.width, 3};
  std::vector<const char*> names{"image"};
  std::vector<Ort::Value> inputs;
  inputs.push_back(
      Ort::Value::CreateTensor<uint8_t>(memory, image.rgb.data(), image.rgb.size(), shape.data(), shape.size()));
  float threshold = count > 3 ? std::strtof(words[3], nullptr) : 0;
  if (count > 3) {  // an input that need not be given: the model has its own
    names.push_back("threshold");
    inputs.push_back(Ort::Value::CreateTensor<float>(memory, &threshold, 1, nullptr, 0));
  }
  const std::array<const char*, 3> outputs{"score", "is_anomalous", "mask"};
  auto results = session.Run(Ort::RunOptions(), names.data(), inputs.data(), inputs.size(), outputs.data(), outputs.size());

  const bool* mask = results[2].GetTensorData<bool>();
  int64_t marked = 0;
  for (int64_t pixel = 0; pixel < image.height * image.width; ++pixel) marked += mask[pixel];
  std::cout << (category ? category.get() : "?") << " score " << *results[0].GetTensorData<float>() << " verdict "
            << (*results[1].GetTensorData<bool>() ? "anomalous" : "good") << " pixels " << marked << "\n";
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
