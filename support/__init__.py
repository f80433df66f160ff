"""What the scripts at the top lean on, one idea a file. Nothing here imports train.py, predict.py or export.py.

The network           dense.py        fc6 and fc7 as one matrix product
                      derivation.py   the crops of FCN-8s, derived line by line
                      start.py        what a network begins with: ImageNet's weights, another training's, or random ones
                      int8.py         VGG16 in 8-bit integers, for prediction on a processor
                      tiles.py        images of any size, tile by tile
                      average.py      several views of one picture, and the mean of their probabilities
                      segment.py      one call from a picture to its classes, for your own programs
                      scale.py        at which size a picture is computed

From files to batches samples.py      what a sample is, and what a data set is
                      labels.py       what the numbers in a label map mean
                      own.py          own pictures and masks
                      published.py    PASCAL VOC and Cityscapes
                      pairs.py        which mask belongs to which picture
                      classes.py      classes.txt: the classes, and what stands for them in a mask
                      split.py        which images are held out
                      pictures.py     reading picture files
                      reader.py       one sample read
                      batches.py      samples augmented and put together
                      views.py        random views: scale, part, mirror, light
                      counts.py       every file read once, and the pixels of each class counted
                      device.py       the device, its number format, and the way of a batch to it
                      memory.py       lower peak memory, and faster allocation, with the same results

Around the loop       arguments.py    command lines
                      options.py      from the command line of train.py to the settings
                      setup.py        prepares everything that the loop works with
                      optimizer.py    the optimizer, and the learning rate of every step
                      loss_scale.py   small gradients kept above zero in fp16
                      ranks.py        several processes, one run
                      saving.py       when and how checkpoints are written
                      progress.py     how far the loop is
                      waiting.py      how long the device has waited for images
                      divergence.py   a run that diverges ends before anything of it is saved
                      ending.py       signals, errors, exit status
                      interrupt.py    Ctrl-C while PyTorch is being imported

Files                 errors.py       what a user is told, in one line
                      files.py        writing all or nothing, reading without running code
                      png.py          the same for pictures
                      checkpoint.py   what a checkpoint holds, and how a network or a run comes back from one
                      folder.py       the folder of a run
                      safetensors.py  reading a format of published weights

Pictures and roads    draw.py         overlays, contact sheets, curves
                      figures.py      the drawings of the network in the README
                      jobs.py         the pictures that predict.py is to predict
                      results.py      the files that it writes
                      birdseye.py     KITTI Road seen from above, by the calibration
                      roads.py        synthetic road scenes
                      ground.py       their ground: where the road runs, and how it looks
                      things.py       what stands on it: buildings, cars, trees

Speed                 bench.py        speed and memory, beside the network as it was published
                      bench_peers.py  the same network in ONNX Runtime and OpenVINO
                      roofline.py     what a GPU could reach at best: the cost model of docs/gpu.md
                      gpu.py          what one GPU can show, in one report
"""
