# Evaluates a Vagrantfile without Vagrant and prints what it defines, as JSON:
#     ruby - Vagrantfile <record.rb
# It knows the settings that the Vagrantfile beside it uses. Any other is an
# error that names it: add it here, then check it in vagrantfile_test.go.
require "json"

# Settings takes assignments (cpus = 2) of the given names.
class Settings
  attr_reader :values

  def initialize(what, names)
    @what, @names, @values = what, names, {}
  end

  def method_missing(name, *args)
    key = name.to_s.delete_suffix("=")
    unless name.end_with?("=") && @names.include?(key)
      raise NoMethodError, "record.rb does not know #{@what}.#{key}"
    end
    @values[key] = args.first
  end

  def respond_to_missing?(*) = true
end

class VM < Settings
  attr_reader :networks, :folders, :providers, :machines

  def initialize
    super("vm", ["box", "hostname"])
    @networks, @folders, @providers, @machines = [], [], Hash.new { |h, k| h[k] = [] }, {}
  end

  def network(type, **options) = @networks << { type: type, **options }
  def synced_folder(from, to, **options) = @folders << { from: from, to: to, **options }
  def provider(name, &block) = @providers[name] << block

  def define(name, **options, &block)
    raise "machine #{name} is defined twice" if @machines.key?(name)
    @machines[name] = { options: options, block: block }
  end
end

Config = Struct.new(:vm)

module Vagrant
  # As Vagrant does it, a machine has what the outer block says, then its own.
  def self.configure(version, &outer)
    raise "configuration version #{version.inspect} is not 2" unless version == "2"
    outer.call(top = Config.new(VM.new))
    machines = top.vm.machines.to_h do |name, machine|
      outer.call(Config.new(vm = VM.new))
      machine[:block].call(Config.new(vm))
      providers = vm.providers.to_h do |provider, blocks|
        settings = Settings.new(provider, ["cpus", "memory"])
        blocks.each { |block| block.call(settings) }
        [provider, settings.values]
      end
      [name, { **vm.values, options: machine[:options], networks: vm.networks, folders: vm.folders, providers: providers }]
    end
    puts JSON.generate(machines)
  end
end

file = ARGV.fetch(0)
eval(File.read(file), TOPLEVEL_BINDING.dup, file)
